// SPDX-License-Identifier: Apache-2.0
#include "cuda/sm90/cells/tiling.h"

#include <algorithm>
#include <cmath>

#include "cuda/sm90/cells/plane.h"

namespace block_sparse::cuda::sm90::cells {
namespace {

// Measured on an H100, per nanosecond, of a multiprocessor where not of all.
constexpr double kLoadBytes = 6000;    // out of L2, of all
constexpr double kArriveBytes = 60;    // into a multiprocessor
constexpr double kMemoryBytes = 2800;  // from memory, of all
constexpr double kProducts = 3594;     // multiply-adds at the tensor cores' peak
constexpr double kPieceNs = 4000;      // to set a piece up and to store it
constexpr double kPartsNs = 5000;      // until the CTAs of a cluster are ready to add up
constexpr double kPartNs = 100;        // more, times the square of their number
constexpr double kExchangeBytes = 20;  // of partial sums
constexpr int kMinPartTokens = 256;
constexpr int kMoreRounds = 2;  // than are needed, of smaller pieces

/// Share of the peak that the products reach when everything has been loaded.
double share_of_peak(const TilingProblem& p) {
  const int side = std::min(p.cell_height, p.cell_width);
  return side == 128 ? .8 : side == 64 ? .65 : side == 32 ? .42 : .24;
}

/// A way to cut the plane.
struct Cut {
  int cluster;                  // CTAs that share a piece
  int unit_rows, unit_columns;  // panels, at most; 0: as many as a unit may have
  bool by_row;
  int together;
};

double density_of(const TilingProblem& p) {
  return std::min(1., double(p.blocks) / (double(p.rows) * double(p.columns)));
}

/// The fastest of what was measured on an H100 with 8192 tokens: 4096 -> 14336 (wide),
/// 4096 -> 4096, 768 -> 3072.
Cut cut_of(const TilingProblem& p) {
  const double density = density_of(p);
  const bool dense = density >= .2;
  const bool wide =
      std::int64_t(p.rows) * p.cell_height * p.columns * p.cell_width >= std::int64_t(1) << 25;
  // Two CTAs share a piece where there are enough for half of the multiprocessors.
  const int shared = p.blocks > p.multiprocessors * (p.cell_height == 128 ? 1.2 : 6.) ? 2 : 1;
  if (p.cell_height == 128) return {shared, 0, 0, dense, 1};
  if (p.cell_height == 64) {
    if (dense && shared == 2) return {2, 0, 8, true, 2};
    if (dense && density < .4) return {1, 0, 0, true, 2};
    return {shared, 0, 0, shared == 1 && !dense, 1};
  }
  if (p.cell_height == 32 && p.cell_width == 32) {
    if (dense) return {1, 16, 0, false, 2};
    const int rows = density < .08 ? 8 : wide ? 21 : 12;
    return {wide ? 2 : 1, rows, 0, false, 2};
  }
  if (p.cell_height == 16 && p.cell_width == 16) {
    if (dense) return density >= .4 ? Cut{1, 8, 16, false, 4} : Cut{1, 12, 32, false, 4};
    return density >= .08 ? Cut{1, 14, 16, false, 1} : Cut{1, 12, 32, false, 2};
  }
  return {1, 14, 32, false, 1};
}

CellKind kind_of(const TilingProblem& p, int together) {
  return {p.cell_height, p.cell_width, together};
}

/// What an even density makes of a unit.
struct UnitSize {
  double rows, columns;     // panels
  double cells, deviation;  // with holes
};

UnitSize size_of(const TilingProblem& p, const Tiling& t, int panel_rows, int panel_columns) {
  const double density = density_of(p);
  const double down = double(p.rows) / t.groups;
  const double across = double(p.columns) / t.segments;
  UnitSize u{double(panel_rows) / t.groups, double(panel_columns) / t.segments,
             density * down * across, 0};
  if (t.groups * t.segments > 1) u.deviation = std::sqrt(u.cells * (1 - density));
  // Lines are filled up: with pairs, those of an odd number of cells.
  const double odd = (1 - std::pow(1 - 2 * density, t.by_row ? across : down)) / 2;
  u.cells += (t.together == 2 ? odd : (t.together - 1) * .5) * (t.by_row ? down : across);
  return u;
}

/// Expected duration of a piece, in ns.
struct PieceTime {
  double walk;  // along the tokens: of its loads or of its products
  double ends;  // to set it up and to store it
};

/// Of a piece of so many cells, while as many pieces run as there are or fit.
PieceTime piece_time(const TilingProblem& p, const Tiling& t, const UnitSize& u, double cells,
                     double pieces) {
  const CellKind kind = kind_of(p, t.together);
  const double along = t.by_row ? u.rows : u.columns;
  const double across = t.by_row ? u.columns : u.rows;
  const double of_cta = std::ceil(cells / t.cluster);
  // Panels that the piece spans in its order, which CTAs share, and those across.
  const double spanned = std::max(along * std::min(1., cells / std::max(u.cells, 1.)), 1.);
  const double in_panel = kind.panel_rows() * kind.panel_columns();
  const double touched =
      std::min(of_cta, across * (1 - std::pow(1 - density_of(p), in_panel * spanned)));
  const double panel_bytes = std::max(p.cell_height, kind.box_features()) * 2;
  const double ctas = std::min<double>(pieces * t.cluster * t.parts, p.multiprocessors);
  const double load =
      (spanned / t.cluster + touched) * panel_bytes / std::min(kArriveBytes, kLoadBytes / ctas);
  // Cells that fill up those which are worked on as a group cost as much.
  const double group = kind.capacity() / (kind.by_wgmma() ? 3. : 4.);
  const double multiply =
      std::ceil(of_cta / group) * group * kind.elements() / (kProducts * share_of_peak(p));
  const double exchange = t.parts == 1 ? 0
                                       : kPartsNs + t.parts * t.parts * kPartNs +
                                             cells * kind.elements() * 4 / kExchangeBytes;
  return {ceil_div(p.tokens, t.parts) * std::max(load, multiply), kPieceNs + exchange};
}

/// Expected number of pieces of a unit which is cut into `wanted`, or as many as it needs.
double expected_pieces(const UnitSize& u, int piece_cells, int wanted) {
  double pieces = wanted;
  for (int k = wanted; k * piece_cells < u.cells + 3 * u.deviation; ++k) {
    const double spread = std::max(u.deviation, 1e-3) * std::sqrt(2.);
    pieces += std::erfc((k * piece_cells - u.cells) / spread) / 2;
  }
  return pieces;
}

/// Into how many pieces each unit, and into how many parts the tokens are cut, such that
/// the rounds are expected to take the least time.
void choose_pieces(const TilingProblem& p, const UnitSize& u, int piece_cells, Tiling* t) {
  const int units = t->groups * t->segments;
  const double least = units * expected_pieces(u, piece_cells, 1);
  // Of what is touched of x and dy.
  const double empty = 1 - density_of(p);
  const double memory = ((1 - std::pow(empty, p.columns)) * p.rows * p.cell_height +
                         (1 - std::pow(empty, p.rows)) * p.columns * p.cell_width) *
                        2 * p.tokens / kMemoryBytes;
  double fastest = 0;
  Tiling best{};
  for (int parts = 1; parts <= (t->cluster == 1 ? kMaxParts : 1); parts *= 2) {
    const int clusters = clusters_of(p.multiprocessors, t->cluster * parts);
    if (parts > 1 && p.tokens < parts * kMinPartTokens) break;
    if (parts > 2 && least > clusters) break;
    Tiling with = *t;
    with.parts = parts;
    const int rounds = static_cast<int>(std::ceil(least / clusters - .02));
    // As few as possible, or as many as keep all busy to the end.
    for (int filled = t->cluster == 2 ? rounds : rounds - 1; filled <= rounds + kMoreRounds;
         ++filled) {
      with.unit_pieces = filled < rounds ? 1 : std::max(filled * clusters / units, 1);
      const double expected = std::min(expected_pieces(u, piece_cells, with.unit_pieces),
                                       std::max(u.cells / t->together, 1.));
      const double largest =
          std::min<double>(piece_cells, std::ceil((u.cells + u.deviation) / expected));
      const double needed_rounds = std::ceil(units * expected / clusters - .02);
      const PieceTime piece = piece_time(p, with, u, largest, units * expected);
      const double ns = std::max(needed_rounds * piece.walk, memory) + needed_rounds * piece.ends;
      if (best.parts == 0 || ns < fastest) {
        fastest = ns;
        best = with;
      }
    }
  }
  *t = best;
}

}  // namespace

Tiling choose_tiling(const TilingProblem& p) {
  const Cut c = cut_of(p);
  const CellKind kind = kind_of(p, c.together);
  const int panel_rows = ceil_div(p.rows, kind.panel_rows());
  const int panel_columns = ceil_div(p.columns, kind.panel_columns());
  const int cells = kind.capacity();
  Tiling t{};
  t.cluster = c.cluster;
  t.by_row = c.by_row;
  t.together = c.together;
  t.groups = ceil_div(panel_rows, c.unit_rows > 0 ? c.unit_rows : kMaxPanels);
  t.segments = ceil_div(panel_columns, c.unit_columns > 0 ? c.unit_columns : kMaxPanels);
  // Boxes that a CTA may need of a unit, whatever the pattern is.
  const int rows = ceil_div(panel_rows, t.groups);
  const int columns = ceil_div(panel_columns, t.segments);
  const int boxes = std::min(rows, cells) + std::min(columns, cells / c.together);
  t.stage_tokens = p.cell_height >= kBoxFeatures || boxes <= kind.max_boxes(32) ? 32 : 16;
  choose_pieces(p, size_of(p, t, panel_rows, panel_columns), c.cluster * cells, &t);
  return t;
}

}  // namespace block_sparse::cuda::sm90::cells
