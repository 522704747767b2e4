// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

#include "block_sparse/cuda.h"
#include "cuda/sm90/cells/plane.h"
#include "cuda/sm90/cells/tiling.h"

namespace block_sparse::cuda::sm90::cells {

/// What a call does, without pointers.
struct Layout {
  CellKind cell;
  TilingProblem problem;
  Tiling tiling;
  std::size_t counts_bytes, cells_bytes;
  int clusters() const {
    return clusters_of(problem.multiprocessors, tiling.cluster * tiling.parts);
  }
};

Status launch_bf16(const WeightGradientArgs& args, const Layout& layout, Stream stream);
Status launch_f16(const WeightGradientArgs& args, const Layout& layout, Stream stream);

}  // namespace block_sparse::cuda::sm90::cells
