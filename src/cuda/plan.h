// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "block_sparse/pattern.h"

namespace block_sparse::cuda {

/// What a plan consists of, one after another; `kTables` in plan.cu says how
/// long each is and how it is filled. A new table goes to the end, there too.
enum class PlanTable {
  row_tiles,        // order of the tiles of block rows, most blocks first
  column_tiles,     // the same for block columns
  row_lines,        // order of block rows less than 64 high: those that share columns together
  column_lines,     // the same for block columns
  row_schedule,     // which cluster of CTAs works on which of them: `Schedule`
  column_schedule,  // the same for block columns
  count,
};

/// The table of a plan, or null where there is no plan.
const std::int32_t* plan_table(const PatternView& pattern, const std::int32_t* plan,
                               PlanTable table);

/// One orientation of the index: lines are block rows (forward) or block
/// columns (input gradient), K runs across them.
struct Lines {
  const std::int32_t* pointers;    // count + 1
  const std::int32_t* others;      // position across, ascending within a line
  const std::int32_t* block_ids;   // slot
  const std::int32_t* order;       // tiles, most blocks first; null: as they come
  const std::int32_t* line_order;  // lines less than 64 high, in groups of 128 outputs
  const std::int32_t* schedule;    // `Schedule`, null where there is no plan
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

/// How a schedule is laid out: for powers of two of token tiles, up to as many as
/// make kRound items, the items of each cluster one after another. An item is a pair
/// of tiles of 64 outputs, in the order of the tiles or lines, with a token tile. First comes the
/// number of clusters it was made for (0: there is none), then for each power of two where the
/// items of each cluster begin, and where those of the last one end.
struct Schedule {
  static constexpr int kMaxClusters = 96;
  static constexpr int kMaxPairs = 4096;
  static constexpr int kMaxLevels = 7;
  static constexpr int kRound = 1536;
  /// Bytes of x that all outputs are computed for before the next: they stay in L2.
  static constexpr int kInFlightBytes = 18 << 20;

  /// Bytes of W that stay in L2 beside one tile of tokens, though all of them are read
  /// again for each.
  static constexpr int kWeightBytes = 16 << 20;

  /// That many tiles of `tokens` tokens, of 16 bits and `k` features.
  static constexpr std::int64_t in_flight(std::int64_t k, std::int64_t tokens) {
    const std::int64_t fit = k > 0 ? kInFlightBytes / (k * 2 * tokens) : 0;
    return fit > 1 ? fit : 1;
  }

  static constexpr std::int64_t pairs_of(std::int64_t outs) { return (outs + 127) / 128; }
  static constexpr std::int32_t item(int pair, int token_tile) { return pair << 6 | token_tile; }
  static constexpr int pair_of(std::int32_t item) { return item >> 6; }
  static constexpr int token_tile_of(std::int32_t item) { return item & 63; }
  /// Powers of two from 2^0 on.
  static constexpr int levels(std::int64_t pairs) {
    int count = 1;
    while (count < kMaxLevels && pairs << (count - 1) < kRound) ++count;
    return count;
  }
  static constexpr int offsets(int level) { return 1 + level * (kMaxClusters + 1); }
  static constexpr int items(int levels, std::int64_t pairs, int level) {
    return offsets(levels) + static_cast<int>(pairs * ((1 << level) - 1));
  }
  static constexpr std::int64_t length(std::int64_t pairs) {
    return pairs > kMaxPairs ? 1 : items(levels(pairs), pairs, levels(pairs));
  }
};

inline Lines row_lines(const PatternView& p, const std::int32_t* plan) {
  return {p.crow_indices,
          p.col_indices,
          p.block_ids,
          plan_table(p, plan, PlanTable::row_tiles),
          plan_table(p, plan, PlanTable::row_lines),
          plan_table(p, plan, PlanTable::row_schedule),
          static_cast<int>(p.n_block_rows())};
}
inline Lines column_lines(const PatternView& p, const std::int32_t* plan) {
  return {p.ccol_indices,
          p.row_indices,
          p.t_block_ids,
          plan_table(p, plan, PlanTable::column_tiles),
          plan_table(p, plan, PlanTable::column_lines),
          plan_table(p, plan, PlanTable::column_schedule),
          static_cast<int>(p.n_block_cols())};
}

}  // namespace block_sparse::cuda
