// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

/// How the weight gradient is cut into pieces of work.
///
/// A piece is a set of cells (blocks, or the parts that larger blocks are cut
/// into) whose sums a CTA, or a cluster of two, half each, holds in registers while
/// it walks along the tokens.
/// Each token brings in the features of dy of all the rows, and those of x of
/// all the columns, that a piece touches; so its cells lie close together in the
/// plane of rows and columns. The plane is cut into units (groups of rows x
/// segments of columns); the cells stored in a unit, column after column or row
/// after row, are dealt out evenly to as few pieces as hold them, or to as many as
/// keep all multiprocessors busy to the end.
namespace block_sparse::cuda::sm90::cells {

/// Cells of 32 x 32 are multiplied in pairs that share a column: 64 rows, the
/// least that wgmma takes, gathered from two places. Those of 64 x 64 in pairs that
/// share a row, whose dy is then read from shared memory once: 128 columns gathered.
constexpr bool are_paired(int cell_height, int cell_width) {
  return cell_height == cell_width && (cell_height == 32 || cell_height == 64);
}
constexpr bool are_paired_by_row(int cell_height, int cell_width) {
  return are_paired(cell_height, cell_width) && cell_height == 64;
}
/// Two CTAs may hold a piece's sums together and load for each other. Cells that go
/// through mma.sync are bound by that: there it is slower throughout.
constexpr bool may_share(int cell_height, int cell_width) {
  return cell_height == cell_width && cell_height >= 32;
}
/// Features are loaded in boxes of this width: 128 bytes of a token, or the width
/// of a cell that is gathered.
constexpr int kBoxFeatures = 64;
constexpr int box_features(int cell_height, int cell_width) {
  return cell_height == 32 && are_paired(cell_height, cell_width) ? 32 : kBoxFeatures;
}
/// Limits of a unit, from the shared memory of the kernels.
constexpr int kMaxSidePanels = 32767;      // of the matrix; its square is an int
constexpr int kMaxPanels = 256;            // along each side
constexpr int kMaxUnitCells = 128 * 1024;  // stored or not
constexpr int kMaxStageBoxes = 52;         // of 16 tokens
constexpr int kRingBytes = 216 * 1024;     // of 227 KB: at least two stages
constexpr int kMaxSplits = 16;
constexpr int kMinSplitTokens = 256;

/// Accumulators of each of the 256 threads that multiply; mma.sync needs room
/// for fragments, of which low cells have more.
constexpr int accumulators(int cell_height, int cell_width) {
  return cell_height >= kBoxFeatures || are_paired(cell_height, cell_width) ? 192 : 128;
}
/// Cells of a CTA.
constexpr int capacity(int cell_height, int cell_width) {
  return accumulators(cell_height, cell_width) * 256 / (cell_height * cell_width);
}

constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

struct Plane {
  const std::int32_t* crow;
  const std::int32_t* block_cols;
  const std::int32_t* block_ids;
  int rows, columns;              // of cells
  int down, across;               // cells of a block
  int panel_rows, panel_columns;  // cells in a panel: kBoxFeatures, or one larger cell
  int groups, segments;           // of panels
  bool by_row;                    // order of a unit's cells
  bool pairs;                     // lines of an odd number of cells end with a hole

  constexpr int units() const { return groups * segments; }
};

struct Unit {
  int row0, rows;
  int column0, columns;
  int base;  // of the unit's part of the list of cells
};
constexpr Unit unit_of(const Plane& p, int index) {
  const int group = index / p.segments;
  const int segment = index % p.segments;
  const auto bound = [](int i, int parts, int cells, int step) {
    const int panels = ceil_div(cells, step);
    const int panel = i * panels / parts;
    return panel * step < cells ? panel * step : cells;
  };
  const int row0 = bound(group, p.groups, p.rows, p.panel_rows);
  const int row1 = bound(group + 1, p.groups, p.rows, p.panel_rows);
  const int column0 = bound(segment, p.segments, p.columns, p.panel_columns);
  const int column1 = bound(segment + 1, p.segments, p.columns, p.panel_columns);
  const int holes_down = p.pairs && !p.by_row ? 1 : 0;  // of a unit's column
  const int holes_across = p.pairs && p.by_row ? 1 : 0;
  return {row0, row1 - row0, column0, column1 - column0,
          (row0 + holes_down * group) * (p.columns + holes_across * p.segments) +
              (row1 - row0 + holes_down) * (column0 + holes_across * segment)};
}

/// Room for the cells of all units, and for holes.
constexpr std::int64_t listed_cells(const Plane& p) {
  return p.pairs ? (p.by_row ? std::int64_t(p.rows) * (p.columns + p.segments)
                             : std::int64_t(p.rows + p.groups) * p.columns)
                 : std::int64_t(p.rows) * p.columns;
}

/// A stored cell: its place in the unit, and the slot of its block (-1: a hole).
struct Cell {
  std::int32_t place;  // row | column << 16
  std::int32_t slot;
  constexpr int row() const { return place & 0xffff; }
  constexpr int column() const { return place >> 16 & 0xffff; }
};

/// Pieces go to the clusters in rounds, all of one round side by side, so that
/// they read the same tokens at the same time and L2 holds those. What is left
/// for the last round is split along the tokens into parts that are added up
/// afterwards, if that is expected to be faster.
struct Rounds {
  int clusters;
  int tokens;
  int stage_tokens;
  int capacity;     // cells of a piece
  int unit_pieces;  // of a unit, if it has as many cells: then they fill the rounds
  int piece_ns;     // expected duration of a whole piece
  int slab_bytes;   // partial sums of a part of a piece
  int max_slabs;    // that fit the workspace
};

/// Pieces of a unit; none is empty, and pairs stay together.
constexpr int pieces_of(const Plane& p, const Rounds& r, int cells) {
  const int needed = ceil_div(cells, r.capacity);
  const int possible = cells / (p.pairs ? 2 : 1);
  const int wanted = r.unit_pieces < possible ? r.unit_pieces : possible;
  return needed < wanted ? wanted : needed;
}

/// Expected duration of `tail` pieces in `splits` parts each.
constexpr std::int64_t tail_ns(const Rounds& r, int tail, int splits) {
  const std::int64_t parts = std::int64_t(tail) * splits;
  const std::int64_t rounds = (parts + r.clusters - 1) / r.clusters;
  // Parts are written and read again at about 2.4 TB/s; 4 us for one more kernel's work.
  const std::int64_t sums = splits == 1 ? 0 : 4000 + parts * r.slab_bytes / 1200;
  return rounds * r.piece_ns / splits + sums;
}
constexpr bool can_split(const Rounds& r, int tail, int splits) {
  const std::int64_t parts = std::int64_t(tail) * splits;
  return splits == 1 || (parts <= 2 * r.clusters && parts <= r.max_slabs &&
                         std::int64_t(splits) * kMinSplitTokens <= r.tokens);
}

}  // namespace block_sparse::cuda::sm90::cells
