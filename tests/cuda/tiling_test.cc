// SPDX-License-Identifier: Apache-2.0
#include "cuda/sm90/cells/tiling.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>

#include "cuda/sm90/cells/plane.h"

namespace block_sparse::cuda::sm90::cells {
namespace {

TilingProblem problem_of(int out, int in, int height, int width, double density, int tokens) {
  const int rows = out / height;
  const int columns = in / width;
  return {rows,   columns, height, width, std::max(static_cast<int>(density * rows * columns), 1),
          tokens, 132};
}

/// What the kernels rely on: the units cover the plane once, in order, and the
/// panels of a piece fit two stages whatever the pattern is.
void expect_fits(const TilingProblem& p) {
  const Tiling t = choose_tiling(p);
  const bool wide = p.cell_height >= kBoxFeatures;
  Plane plane{};
  plane.rows = p.rows;
  plane.columns = p.columns;
  const int width = box_features(p.cell_height, p.cell_width);
  plane.pairs = are_paired(p.cell_height, p.cell_width);
  plane.panel_rows = std::max(width / p.cell_height, 1);
  plane.panel_columns = std::max(width / p.cell_width, 1);
  plane.groups = t.groups;
  plane.segments = t.segments;
  plane.by_row = t.by_row;
  ASSERT_TRUE(t.cluster == 1 || t.cluster == 2);
  ASSERT_GE(t.groups, 1);
  ASSERT_GE(t.segments, 1);
  ASSERT_TRUE(t.stage_tokens == 32 || (t.stage_tokens == 16 && !wide));
  ASSERT_GT(t.piece_ns, 0);
  std::int64_t cells = 0;
  for (int i = 0; i < plane.units(); ++i) {
    const Unit u = unit_of(plane, i);
    ASSERT_EQ(u.base, cells);
    // Room for a hole in each line of pairs.
    const bool down = plane.pairs && !plane.by_row;
    const bool across = plane.pairs && plane.by_row;
    cells += std::int64_t(u.rows + (down ? 1 : 0)) * (u.columns + (across ? 1 : 0));
    const int rows = ceil_div(u.rows, plane.panel_rows);
    const int columns = ceil_div(u.columns, plane.panel_columns);
    ASSERT_LE(rows, kMaxPanels);
    ASSERT_LE(columns, kMaxPanels);
    ASSERT_LE(u.rows * u.columns, kMaxUnitCells);
    // A pair of cells of 32 needs one column.
    const int cells_of_cta = capacity(p.cell_height, p.cell_width);
    const int panels = wide          ? 2 * cells_of_cta
                       : plane.pairs ? rows + std::min(columns, cells_of_cta / 2)
                                     : rows + columns;
    const int boxes = panels * std::max(p.cell_height / kBoxFeatures, 1);
    ASSERT_LE(boxes, kMaxStageBoxes);
    ASSERT_LE(2 * boxes * width * 2 * t.stage_tokens, kRingBytes);
  }
  EXPECT_EQ(cells, listed_cells(plane));
}

TEST(Tiling, FitsTheKernels) {
  for (const auto& [out, in] : {std::pair{14336, 4096},
                                {4096, 14336},
                                {4096, 4096},
                                {3072, 768},
                                {128, 128},
                                {128, 65536},
                                {65536, 128},
                                {28672, 8192}}) {
    for (const auto& [height, width] :
         {std::pair{16, 16}, {16, 32}, {32, 16}, {32, 32}, {64, 64}, {128, 128}}) {
      for (const double density : {1., .5, .1, .05, .001}) {
        for (const int tokens : {1, 300, 8192}) {
          SCOPED_TRACE(testing::Message() << out << "x" << in << " " << height << "x" << width
                                          << " " << density << " " << tokens);
          expect_fits(problem_of(out, in, height, width, density, tokens));
        }
      }
    }
  }
}

Rounds rounds_of(int tokens) {
  Rounds r{};
  r.clusters = 66;
  r.tokens = tokens;
  r.stage_tokens = 32;
  r.capacity = 24;
  r.unit_pieces = 10;
  r.piece_ns = 100000;
  r.slab_bytes = 393216;
  r.max_slabs = 132;
  return r;
}

TEST(Tiling, SplitsAreWeighed) {
  const Rounds r = rounds_of(8192);
  EXPECT_FALSE(can_split(r, 50, 3));  // more than two rounds
  EXPECT_FALSE(can_split(rounds_of(511), 1, 2));
  EXPECT_TRUE(can_split(rounds_of(512), 1, 2));
  EXPECT_EQ(tail_ns(r, 50, 1), 100000);
  EXPECT_LT(tail_ns(r, 33, 2), tail_ns(r, 33, 1));
  EXPECT_GT(tail_ns(r, 65, 2), tail_ns(r, 65, 1));
}

TEST(Tiling, PiecesFillTheRoundsAndAreNeverEmpty) {
  const Rounds r = rounds_of(8192);
  Plane p{};
  EXPECT_EQ(pieces_of(p, r, 0), 0);
  EXPECT_EQ(pieces_of(p, r, 7), 7);
  EXPECT_EQ(pieces_of(p, r, 100), 10);
  EXPECT_EQ(pieces_of(p, r, 241), 11);
  p.pairs = true;
  EXPECT_EQ(pieces_of(p, r, 0), 0);
  EXPECT_EQ(pieces_of(p, r, 8), 4);
  EXPECT_EQ(pieces_of(p, r, 100), 10);
}

}  // namespace
}  // namespace block_sparse::cuda::sm90::cells
