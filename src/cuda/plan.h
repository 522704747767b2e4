// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "block_sparse/pattern.h"

namespace block_sparse::cuda {

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

/// The plan is the order of the row tiles followed by that of the column tiles.
inline Lines row_lines(const PatternView& p, const std::int32_t* plan) {
  return {p.crow_indices, p.col_indices, p.block_ids, plan, static_cast<int>(p.n_block_rows())};
}
inline Lines column_lines(const PatternView& p, const std::int32_t* plan) {
  const std::int32_t* order =
      plan == nullptr ? nullptr : plan + tiles_of(p.n_block_rows(), p.block_height);
  return {p.ccol_indices, p.row_indices, p.t_block_ids, order, static_cast<int>(p.n_block_cols())};
}

}  // namespace block_sparse::cuda
