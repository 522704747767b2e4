// SPDX-License-Identifier: Apache-2.0
#include "cuda/sm90/cells/tiling.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "cuda/sm90/cells/plane.h"

namespace block_sparse::cuda::sm90::cells {
namespace {

// Measured on an H100, per multiprocessor (memory: of all) and nanosecond.
constexpr double kLoadBytes = 59;              // out of L2
constexpr double kArriveBytes = 100;           // into a multiprocessor, by multicast
constexpr double kMemoryBytes = 2800;          // from memory
constexpr double kProducts = 3594;             // multiply-adds at the tensor cores' peak
constexpr double kPieceNs = 3000;              // to set a piece up and to store it
constexpr int kMaxBoxes = kMaxStageBoxes / 2;  // of 32 tokens

/// Share of the peak that the products reach when everything has been loaded.
double share_of_peak(const TilingProblem& p) {
  const int side = std::min(p.cell_height, p.cell_width);
  return side == 128 ? .9 : side == 64 ? .75 : side == 32 ? .5 : .38;
}

struct Estimate {
  double ns = std::numeric_limits<double>::infinity();
  Tiling tiling{};
};

/// A unit is about `unit_rows` x `unit_columns` panels.
Estimate estimate(const TilingProblem& p, int unit_rows, int unit_columns, bool by_row) {
  const bool whole_panels = p.cell_height >= kBoxFeatures;  // a cell is a panel
  const bool paired = are_paired(p.cell_height, p.cell_width);
  const int box_width = box_features(p.cell_height, p.cell_width);
  const int row_cells = std::max(box_width / p.cell_height, 1);
  const int column_cells = std::max(box_width / p.cell_width, 1);
  const int panel_rows = ceil_div(p.rows, row_cells);
  const int panel_columns = ceil_div(p.columns, column_cells);
  Estimate e;
  Tiling& t = e.tiling;
  t.groups = ceil_div(panel_rows, unit_rows);
  t.segments = ceil_div(panel_columns, unit_columns);
  t.by_row = by_row;
  t.stage_tokens = 32;
  const int most_rows = ceil_div(panel_rows, t.groups);
  const int most_columns = ceil_div(panel_columns, t.segments);
  if (most_rows > kMaxPanels || most_columns > kMaxPanels ||
      most_rows * row_cells * most_columns * column_cells > kMaxUnitCells) {
    return e;
  }
  if (!whole_panels && most_rows + most_columns > (paired ? 2 : 1) * kMaxBoxes) {
    if (paired || most_rows + most_columns > 2 * kMaxBoxes) return e;
    t.stage_tokens = 16;
  }

  const double rows = double(panel_rows) / t.groups;  // panels of a unit
  const double columns = double(panel_columns) / t.segments;
  const double density = std::min(1., double(p.blocks) / (double(p.rows) * double(p.columns)));
  const double empty = 1 - density;
  // A column of an odd number of cells leaves half a product empty.
  const double holes =
      paired ? .5 * columns * column_cells * (1 - std::pow(empty, rows * row_cells)) : 0;
  const double cells = density * rows * row_cells * columns * column_cells + holes;
  const double deviation = std::sqrt(cells * empty);
  const double pieces = std::max(1., std::ceil((cells + deviation / 2) / p.capacity));
  // The largest pieces of a round are what the others wait for: those of a unit
  // are equal, those of many units differ as their numbers of cells do.
  const double units_spread = std::min(2.5, std::log2(t.groups * t.segments) / 2);
  const double largest =
      std::min<double>(p.capacity, (cells + units_spread * deviation) / pieces + 1);
  const double part = std::min(1., largest / std::max(cells, 1e-3));  // of a unit
  // Panels along the order of the cells, and those across, that a CTA's half of a
  // piece touches, and that both do.
  const double along = by_row ? rows : columns;
  const double across = by_row ? columns : rows;
  const double cut = pieces > 1 ? .7 : 0.;
  const double no_panel = std::pow(empty, row_cells * column_cells);
  const double half = std::min(along, along * part / kCluster + .7);
  const double in_any = 1 - std::pow(no_panel, across);
  const double spanned = half * in_any;
  const double spanned_both = std::max(0., 2 * half - std::min(along, along * part + cut)) * in_any;
  const double hit = 1 - std::pow(no_panel, along * part / kCluster);
  const double touched = across * hit;
  const double touched_both = touched * hit;
  const int panel_boxes = std::max(p.cell_height / kBoxFeatures, 1);
  // Boxes of 64 bytes take longer than their bytes say.
  const double box_bytes = panel_boxes * box_width * 2 * (paired ? 1.2 : 1.);
  const double arriving = (spanned + touched) * box_bytes;
  const double leaving = arriving - (spanned_both + touched_both) / kCluster * box_bytes;
  const double load = std::max(arriving / kArriveBytes, leaving / kLoadBytes);
  const double multiply =
      largest / kCluster * p.cell_height * p.cell_width / (kProducts * share_of_peak(p));

  // The part of the plane that is in flight is read from memory once a round.
  const double all = t.groups * t.segments * pieces;
  const double units = std::min(all, double(p.clusters)) / pieces;
  double row_share = 1. / t.groups;
  double column_share = 1. / t.segments;
  if (units >= t.segments) {
    row_share *= units / t.segments;
    column_share = 1;
  } else if (units >= 1 || !by_row) {
    column_share *= units;
  } else {
    row_share *= units;
  }
  const double memory =
      2 * (row_share * p.rows * p.cell_height + column_share * p.columns * p.cell_width) /
      kMemoryBytes;
  const double piece_ns = p.tokens * std::max({load, multiply, memory}) + kPieceNs;
  t.piece_ns = static_cast<int>(std::min(piece_ns, 1e8));

  const Rounds rounds{p.clusters,    p.tokens,   t.stage_tokens,
                      p.capacity,    t.piece_ns, p.capacity * p.cell_height * p.cell_width * 4,
                      2 * p.clusters};
  const int whole = static_cast<int>(all) / p.clusters;
  const int tail = static_cast<int>(all) % p.clusters;
  std::int64_t last = std::numeric_limits<std::int64_t>::max();
  for (int s = 1; s <= kMaxSplits; ++s) {
    if (can_split(rounds, tail, s)) last = std::min(last, tail_ns(rounds, tail, s));
  }
  e.ns = whole * piece_ns + static_cast<double>(last);
  return e;
}

Tiling search(const TilingProblem& p) {
  constexpr std::array kSizes{1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 20, 24, 32, 64, 128, 256};
  Estimate best;
  for (const int rows : kSizes) {
    for (const int columns : kSizes) {
      for (const bool by_row : {false, true}) {
        if (by_row && std::min(p.cell_height, p.cell_width) < kBoxFeatures) continue;
        const Estimate e = estimate(p, rows, columns, by_row);
        if (e.ns < best.ns) best = e;
      }
    }
  }
  return best.tiling;
}

}  // namespace

Tiling choose_tiling(const TilingProblem& problem) {
  // The search takes tens of microseconds; a layer asks the same every step.
  struct Known {
    TilingProblem problem{};
    Tiling tiling{};
  };
  thread_local std::array<Known, 16> known;
  thread_local std::size_t next = 0;
  for (const Known& k : known) {
    if (k.problem == problem) return k.tiling;
  }
  Known& k = known[next++ % known.size()];
  k = {problem, search(problem)};
  return k.tiling;
}

}  // namespace block_sparse::cuda::sm90::cells
