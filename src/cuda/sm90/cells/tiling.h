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
  int groups, segments;
  int unit_pieces;
  bool by_row;
  int stage_tokens;
  int piece_ns;  // expected duration of a piece
};

/// The cut with the shortest expected duration, by a model of the loads, the
/// products and the reads from memory.
Tiling choose_tiling(const TilingProblem& problem);

}  // namespace block_sparse::cuda::sm90::cells
