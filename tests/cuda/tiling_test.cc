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
  const CellKind kind{p.cell_height, p.cell_width, t.together};
  plane.together = t.together;
  plane.panel_rows = kind.panel_rows();
  plane.panel_columns = kind.panel_columns();
  plane.groups = t.groups;
  plane.segments = t.segments;
  plane.by_row = t.by_row;
  ASSERT_TRUE(t.cluster == 1 || t.cluster == 2);
  ASSERT_GE(t.groups, 1);
  ASSERT_GE(t.segments, 1);
  ASSERT_TRUE(t.stage_tokens == 32 || (t.stage_tokens == 16 && !wide));
  ASSERT_TRUE(t.parts == 1 || t.cluster == 1);
  ASSERT_TRUE(t.parts == 1 || t.parts == 2 || t.parts == 4 || t.parts == kMaxParts);
  std::int64_t cells = 0;
  for (int i = 0; i < plane.units(); ++i) {
    const Unit u = unit_of(plane, i);
    ASSERT_EQ(u.base, cells);
    // Room for holes in each line.
    const int holes = t.together - 1;
    cells += std::int64_t(u.rows + (t.by_row ? 0 : holes)) * (u.columns + (t.by_row ? holes : 0));
    const int rows = ceil_div(u.rows, plane.panel_rows);
    const int columns = ceil_div(u.columns, plane.panel_columns);
    ASSERT_LE(rows, kMaxPanels);
    ASSERT_LE(columns, kMaxPanels);
    ASSERT_LE(u.rows * u.columns, kMaxUnitCells);
    const int most = kind.capacity();
    const int boxes = wide ? most * 2 * (p.cell_height / kBoxFeatures)
                           : std::min(rows, most) + std::min(columns, most / kind.together);
    ASSERT_LE(boxes, kMaxStageBoxes);
    ASSERT_LE(2 * boxes * kind.box_features() * 2 * t.stage_tokens, kRingBytes);
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

TEST(Tiling, PiecesFillTheRoundsAndAreNeverEmpty) {
  Rounds r{};
  r.capacity = 24;
  r.unit_pieces = 10;
  Plane p{};
  p.together = 1;
  EXPECT_EQ(pieces_of(p, r, 0), 0);
  EXPECT_EQ(pieces_of(p, r, 7), 7);
  EXPECT_EQ(pieces_of(p, r, 100), 10);
  EXPECT_EQ(pieces_of(p, r, 241), 11);
  p.together = 2;
  EXPECT_EQ(pieces_of(p, r, 0), 0);
  EXPECT_EQ(pieces_of(p, r, 8), 4);
  EXPECT_EQ(pieces_of(p, r, 100), 10);
}

}  // namespace
}  // namespace block_sparse::cuda::sm90::cells
