// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "block_sparse/pattern.h"

namespace block_sparse::cuda {

/// What a plan consists of, one after another; `kTables` in plan.cu says how
/// long each is and how it is filled. A new table goes to the end, there too.
enum class PlanTable {
  row_tiles,     // order of the tiles of block rows, most blocks first
  column_tiles,  // the same for block columns
  count,
};

/// The table of a plan, or null where there is no plan.
const std::int32_t* plan_table(const PatternView& pattern, const std::int32_t* plan,
                               PlanTable table);

/// One orientation of the index: lines are block rows (forward) or block
/// columns (input gradient), K runs across them.
struct Lines {
  const std::int32_t* pointers;   // count + 1
  const std::int32_t* others;     // position across, ascending within a line
  const std::int32_t* block_ids;  // slot
  const std::int32_t* order;      // tiles, most blocks first; null: as they come
  int count;
};

/// Output features are worked on in tiles: as many whole lines as make 64
/// features, or one line where it is wider. That many lines share a tile.
constexpr std::int64_t lines_per_tile(std::int64_t line_height) {
  return line_height >= 64 ? 1 : 64 / line_height;
}
constexpr std::int64_t tiles_of(std::int64_t lines, std::int64_t line_height) {
  const std::int64_t per_tile = lines_per_tile(line_height);
  return (lines + per_tile - 1) / per_tile;
}

inline Lines row_lines(const PatternView& p, const std::int32_t* plan) {
  return {p.crow_indices, p.col_indices, p.block_ids, plan_table(p, plan, PlanTable::row_tiles),
          static_cast<int>(p.n_block_rows())};
}
inline Lines column_lines(const PatternView& p, const std::int32_t* plan) {
  return {p.ccol_indices, p.row_indices, p.t_block_ids,
          plan_table(p, plan, PlanTable::column_tiles), static_cast<int>(p.n_block_cols())};
}

}  // namespace block_sparse::cuda
