// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>

/// How the weight gradient is cut into pieces of work.
///
/// A piece is a set of cells (blocks, or the parts that larger blocks are cut
/// into) whose sums a CTA, or a cluster of two, half each, holds in registers while
/// it walks along the tokens; or each CTA of a cluster holds all for a part of them.
/// Each token brings in the features of dy of all the rows, and those of x of
/// all the columns, that a piece touches; so its cells lie close together in the
/// plane of rows and columns. The plane is cut into units (groups of rows x
/// segments of columns); the cells stored in a unit, column after column or row
/// after row, are dealt out evenly to as few pieces as hold them, or to as many as
/// keep all multiprocessors busy to the end.
namespace block_sparse::cuda::sm90::cells {

constexpr int kBoxFeatures = 64;  // 128 bytes of a token

constexpr int kRingBytes = 216 * 1024;  // of shared memory's 227 KB: at least two stages
constexpr int kMaxStageBoxes = 108;     // of 16 tokens and 32 features

/// Cells, and how they are multiplied. Those of 32 x 32 and more go through wgmma: of
/// 128 x 128 one by one, of 64 x 64 one by one or in pairs that share a row, whose dy is
/// then read from shared memory once (128 columns gathered), of 32 x 32 in pairs that
/// share a column (64 rows gathered, the least that wgmma takes). All with a side of 16 go
/// through mma.sync: 1, 2 or 4 of a column, whose x is read once.
struct CellKind {
  int height, width;
  int together;  // every line of cells in a unit is filled up to a multiple with holes

  constexpr int elements() const { return height * width; }
  constexpr bool by_wgmma() const { return height == width && height >= 32; }
  constexpr bool paired() const { return by_wgmma() && together == 2; }
  constexpr bool paired_by_row() const { return paired() && height == 64; }
  /// Whether each warpgroup has cells of its own, in wgmma.
  constexpr bool gathered() const { return by_wgmma() && height <= 64; }
  /// Two CTAs may hold a piece's sums together and load for each other. Cells that go
  /// through mma.sync are bound by that: there it is slower throughout.
  constexpr bool may_share() const { return by_wgmma(); }
  /// Features are loaded in boxes of this width, or the width of a cell that is gathered.
  constexpr int box_features() const { return paired() && height == 32 ? 32 : kBoxFeatures; }
  /// Cells in a panel: a box, or one larger cell.
  constexpr int panel_rows() const { return height < box_features() ? box_features() / height : 1; }
  constexpr int panel_columns() const {
    return width < box_features() ? box_features() / width : 1;
  }
  /// Accumulators of each of the 256 threads that multiply; mma.sync needs room
  /// for fragments.
  constexpr int accumulators() const { return by_wgmma() ? 192 : 128; }
  /// Cells of a CTA.
  constexpr int capacity() const { return accumulators() * 256 / elements(); }
  /// Boxes of so many tokens of which two stages fit the ring.
  constexpr int max_boxes(int tokens) const {
    return kRingBytes / 2 / (tokens * box_features() * 2);
  }
};

/// Limits of a unit, from the shared memory of the kernels.
constexpr int kMaxSidePanels = 32767;      // of the matrix; its square is an int
constexpr int kMaxPanels = 256;            // along each side
constexpr int kMaxUnitCells = 128 * 1024;  // stored or not
constexpr int kMaxParts = 8;

constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

/// Clusters of so many CTAs that surely run side by side: those of more than two may leave
/// multiprocessors of a GPC over.
constexpr int clusters_of(int multiprocessors, int ctas) {
  return ctas <= 2 ? multiprocessors / ctas : std::max(multiprocessors / ctas * 7 / 8, 1);
}

struct Plane {
  const std::int32_t* crow;
  const std::int32_t* block_cols;
  const std::int32_t* block_ids;
  int rows, columns;              // of cells
  int down, across;               // cells of a block
  int panel_rows, panel_columns;  // cells in a panel
  int groups, segments;           // of panels
  bool by_row;                    // order of a unit's cells
  int together;                   // cells of a line, which is filled up with holes

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
  const int holes_down = p.by_row ? 0 : p.together - 1;  // of a unit's column
  const int holes_across = p.by_row ? p.together - 1 : 0;
  return {row0, row1 - row0, column0, column1 - column0,
          (row0 + holes_down * group) * (p.columns + holes_across * p.segments) +
              (row1 - row0 + holes_down) * (column0 + holes_across * segment)};
}

/// Room for the cells of all units, and for holes.
constexpr std::int64_t listed_cells(const Plane& p) {
  const int holes = p.together - 1;
  return p.by_row ? std::int64_t(p.rows) * (p.columns + holes * p.segments)
                  : std::int64_t(p.rows + holes * p.groups) * p.columns;
}

/// A stored cell: its place in the unit, and the slot of its block (-1: a hole).
struct Cell {
  std::int32_t place;  // row | column << 16
  std::int32_t slot;
  constexpr int row() const { return place & 0xffff; }
  constexpr int column() const { return place >> 16 & 0xffff; }
};

/// Pieces go to the clusters in rounds, all of one round side by side, so that
/// they read the same tokens at the same time and L2 holds those. The CTAs of a
/// cluster share a piece's cells, or have each a part of the tokens.
struct Rounds {
  int clusters;
  int tokens;
  int stage_tokens;
  int capacity;     // cells of a piece
  int unit_pieces;  // of a unit, if it has as many cells: then they fill the rounds
  int parts;        // of the tokens
};

/// Pieces of a unit; none is empty, and cells that are multiplied together stay so.
constexpr int pieces_of(const Plane& p, const Rounds& r, int cells) {
  const int needed = ceil_div(cells, r.capacity);
  const int possible = cells / p.together;
  const int wanted = r.unit_pieces < possible ? r.unit_pieces : possible;
  return needed < wanted ? wanted : needed;
}

}  // namespace block_sparse::cuda::sm90::cells
