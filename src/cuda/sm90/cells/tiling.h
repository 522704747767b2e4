// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace block_sparse::cuda::sm90::cells {

/// What the cut of the plane depends on.
struct TilingProblem {
  int rows, columns;  // of cells
  int cell_height, cell_width;
  int blocks;  // cells stored, an upper bound
  int tokens;
  int multiprocessors;
};

struct Tiling {
  int cluster;  // CTAs that share a piece: 1 or 2
  int parts;    // that the tokens are cut into; 1 if CTAs share pieces
  int groups, segments;
  int unit_pieces;
  int together;  // of CellKind
  bool by_row;
  int stage_tokens;
};

/// The cut that was the fastest for such a problem.
Tiling choose_tiling(const TilingProblem& problem);

}  // namespace block_sparse::cuda::sm90::cells
