// SPDX-License-Identifier: Apache-2.0
#include "cuda/sm90/cells/tiling.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <tuple>

#include "cuda/sm90/cells/plane.h"

namespace block_sparse::cuda::sm90::cells {
namespace {

// Measured on an H100, per multiprocessor (memory: of all) and nanosecond.
constexpr double kLoadBytes = 45;              // out of L2
constexpr double kArriveBytes = 80;            // into a multiprocessor, by multicast
constexpr double kMemoryBytes = 2500;          // from memory
constexpr double kProducts = 3594;             // multiply-adds at the tensor cores' peak
constexpr double kPieceNs = 4000;              // to set a piece up and to store it
constexpr double kClusterCost = 1.03;          // of two CTAs that wait for each other
constexpr int kMaxBoxes = kMaxStageBoxes / 2;  // of 32 tokens

/// Share of the peak that the products reach when everything has been loaded.
double share_of_peak(const TilingProblem& p) {
  const int side = std::min(p.cell_height, p.cell_width);
  return side == 128 ? .8 : side == 64 ? .65 : side == 32 ? .42 : .24;
}

/// A way to cut the plane.
struct Cut {
  int cluster;
  int groups, segments;
  bool by_row;
};

/// What an even density makes of a unit.
struct UnitSize {
  double rows, columns;         // panels
  int row_cells, column_cells;  // of a panel
  double empty;                 // probability
  double cells, deviation;      // with holes
  int piece_cells;              // at most
};

UnitSize size_of(const TilingProblem& p, const Cut& c) {
  UnitSize u{};
  const int box_width = box_features(p.cell_height, p.cell_width);
  u.row_cells = std::max(box_width / p.cell_height, 1);
  u.column_cells = std::max(box_width / p.cell_width, 1);
  u.rows = double(ceil_div(p.rows, u.row_cells)) / c.groups;
  u.columns = double(ceil_div(p.columns, u.column_cells)) / c.segments;
  const double density = std::min(1., double(p.blocks) / (double(p.rows) * double(p.columns)));
  u.empty = 1 - density;
  const double down = double(p.rows) / c.groups;
  const double across = double(p.columns) / c.segments;
  u.cells = density * down * across;
  u.deviation = c.groups * c.segments == 1 ? 0 : std::sqrt(u.cells * u.empty);
  if (are_paired(p.cell_height, p.cell_width)) {
    // A line of an odd number of cells leaves half a product empty.
    const double odd = (1 - std::pow(1 - 2 * density, c.by_row ? across : down)) / 2;
    u.cells += odd * (c.by_row ? down : across);
  }
  u.piece_cells = c.cluster * capacity(p.cell_height, p.cell_width);
  return u;
}

/// Pieces that nearly all units can do with.
int least_pieces(const UnitSize& u) {
  return std::max(1, static_cast<int>(std::ceil((u.cells + 2 * u.deviation) / u.piece_cells)));
}
/// As many as fill the last round.
int filling_pieces(const TilingProblem& p, const Cut& c, int least) {
  const int units = c.groups * c.segments;
  const int clusters = p.multiprocessors / c.cluster;
  return std::max(ceil_div(units * least, clusters) * clusters / units, least);
}

struct Estimate {
  double ns = std::numeric_limits<double>::infinity();
  Tiling tiling{};
};

Estimate estimate(const TilingProblem& p, const Cut& c, int unit_pieces) {
  const int clusters = p.multiprocessors / c.cluster;
  const bool whole_panels = p.cell_height >= kBoxFeatures;  // a cell is a panel
  const bool paired = are_paired(p.cell_height, p.cell_width);
  const UnitSize u = size_of(p, c);
  Estimate e;
  Tiling& t = e.tiling;
  t.cluster = c.cluster;
  t.groups = c.groups;
  t.segments = c.segments;
  t.by_row = c.by_row;
  t.unit_pieces = unit_pieces;
  t.stage_tokens = 32;
  const int most_rows = static_cast<int>(std::ceil(u.rows));
  const int most_columns = static_cast<int>(std::ceil(u.columns));
  if (most_rows > kMaxPanels || most_columns > kMaxPanels ||
      most_rows * u.row_cells * most_columns * u.column_cells > kMaxUnitCells) {
    return e;
  }
  // Panels that a CTA may need of a unit, whatever the pattern is: a pair needs one column.
  const int most_panels =
      most_rows +
      (paired ? std::min(most_columns, capacity(p.cell_height, p.cell_width) / 2) : most_columns);
  if (!whole_panels && most_panels > (paired ? 2 : 1) * kMaxBoxes) {
    if (paired || most_panels > 2 * kMaxBoxes) return e;
    t.stage_tokens = 16;
  }

  const double possible = std::max(1., std::floor(u.cells / (paired ? 2 : 1)));
  const double pieces =
      std::max(std::min<double>(unit_pieces, possible), std::ceil(u.cells / u.piece_cells));
  // The largest pieces of a round are what the others wait for.
  const double units_spread = std::min(2., std::log2(c.groups * c.segments) / 2);
  const double largest =
      std::min<double>(u.piece_cells, (u.cells + units_spread * u.deviation) / pieces + .5);
  const double part = std::min(1., largest / std::max(u.cells, 1e-3));  // of a unit
  // Panels along the order of the cells, and those across, that a CTA's half of a
  // piece touches, and that both do.
  const double along = c.by_row ? u.rows : u.columns;
  const double across = c.by_row ? u.columns : u.rows;
  const double no_panel = std::pow(u.empty, u.row_cells * u.column_cells);
  const double half = std::min(along, along * part / c.cluster + .7);
  const double in_any = 1 - std::pow(no_panel, across);
  const double spanned = half * in_any;
  const double hit = 1 - std::pow(no_panel, along * part / c.cluster);
  const double touched = across * hit;
  const double spanned_both = std::max(0., 2 * half - std::min(along, along * part + .7)) * in_any;
  const double both = c.cluster == 1 ? 0 : spanned_both + touched * hit;
  const int panel_boxes = std::max(p.cell_height / kBoxFeatures, 1);
  const int box_width = box_features(p.cell_height, p.cell_width);
  // Boxes of 64 bytes take longer than their bytes say.
  const double box_bytes = panel_boxes * box_width * 2 * (box_width < kBoxFeatures ? 1.2 : 1.);
  const double arriving = (spanned + touched) * box_bytes;
  const double leaving = arriving - both / c.cluster * box_bytes;
  const double load = std::max(arriving / kArriveBytes, leaving / kLoadBytes);
  const double multiply =
      largest / c.cluster * p.cell_height * p.cell_width / (kProducts * share_of_peak(p));

  // The part of the plane that is in flight is read from memory once a round.
  const double all = c.groups * c.segments * pieces;
  const double units = std::min(all, double(clusters)) / pieces;
  double row_share = 1. / c.groups;
  double column_share = 1. / c.segments;
  if (units >= c.segments) {
    row_share *= units / c.segments;
    column_share = 1;
  } else if (units >= 1 || !c.by_row) {
    column_share *= units;
  } else {
    row_share *= units;
  }
  const double memory =
      2 * (row_share * p.rows * p.cell_height + column_share * p.columns * p.cell_width) /
      kMemoryBytes;
  const double token_ns =
      std::cbrt(std::pow(load, 3) + std::pow(multiply, 3) + std::pow(memory, 3));
  const double piece_ns = p.tokens * token_ns * (c.cluster == 1 ? 1 : kClusterCost) + kPieceNs;
  t.piece_ns = static_cast<int>(std::min(piece_ns, 1e8));

  const Rounds rounds{clusters,
                      p.tokens,
                      t.stage_tokens,
                      u.piece_cells,
                      unit_pieces,
                      t.piece_ns,
                      u.piece_cells * p.cell_height * p.cell_width * 4,
                      2 * clusters};
  const int whole = static_cast<int>(all) / clusters;
  const int tail = static_cast<int>(all) % clusters;
  std::int64_t last = std::numeric_limits<std::int64_t>::max();
  for (int s = 1; s <= kMaxSplits; ++s) {
    if (can_split(rounds, tail, s)) last = std::min(last, tail_ns(rounds, tail, s));
  }
  e.ns = whole * piece_ns + static_cast<double>(last);
  return e;
}

/// Numbers of panels in a unit that are tried along each side.
constexpr std::array kSizes{1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13,  14,
                            16, 18, 20, 22, 24, 26, 28, 32, 40, 48, 64, 96, 128, 256};

template <class F>
void for_each_cut(const TilingProblem& p, F&& f) {
  const int box_width = box_features(p.cell_height, p.cell_width);
  const int panel_rows = ceil_div(p.rows, std::max(box_width / p.cell_height, 1));
  const int panel_columns = ceil_div(p.columns, std::max(box_width / p.cell_width, 1));
  int groups = 0;
  for (const int rows : kSizes) {
    if (groups == ceil_div(panel_rows, rows)) continue;
    groups = ceil_div(panel_rows, rows);
    int segments = 0;
    for (const int columns : kSizes) {
      if (segments == ceil_div(panel_columns, columns)) continue;
      segments = ceil_div(panel_columns, columns);
      for (const bool by_row : {false, true}) {
        if (by_row && std::min(p.cell_height, p.cell_width) < kBoxFeatures) continue;
        if (!by_row && are_paired_by_row(p.cell_height, p.cell_width)) continue;
        f(Cut{1, groups, segments, by_row});
        if (may_share(p.cell_height, p.cell_width)) f(Cut{2, groups, segments, by_row});
      }
    }
  }
}

Tiling search(const TilingProblem& p) {
  Estimate best;
  for_each_cut(p, [&](const Cut& c) {
    const int least = least_pieces(size_of(p, c));
    for (const int pieces : {least, filling_pieces(p, c, least)}) {
      const Estimate e = estimate(p, c, pieces);
      if (e.ns < best.ns) best = e;
    }
  });
  return best.tiling;
}

}  // namespace

Tiling choose_tiling(const TilingProblem& problem) {
  // The search takes hundreds of microseconds; a layer asks the same every step.
  constexpr std::size_t kRemembered = 1024;
  const auto key =
      std::make_tuple(problem.rows, problem.columns, problem.cell_height, problem.cell_width,
                      problem.blocks, problem.tokens, problem.multiprocessors);
  thread_local std::map<std::tuple<int, int, int, int, int, int, int>, Tiling> known;
  if (const auto found = known.find(key); found != known.end()) return found->second;
  if (known.size() == kRemembered) known.clear();
  return known[key] = search(problem);
}

}  // namespace block_sparse::cuda::sm90::cells
