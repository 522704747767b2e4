// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

#include "block_sparse/cuda.h"
#include "cuda/sm90/cells/tiling.h"

namespace block_sparse::cuda::sm90::cells {

/// Sides of the cells that blocks are cut into.
struct CellShape {
  int height, width;
  constexpr int elements() const { return height * width; }
};
/// What a call does, without pointers.
struct Layout {
  CellShape cell;
  TilingProblem problem;
  Tiling tiling;
  std::size_t counts_bytes, cells_bytes, slab_bytes;
  int clusters() const { return problem.multiprocessors / tiling.cluster; }
  /// Up to two rounds of parts are split.
  std::size_t all_bytes(int slabs) const { return counts_bytes + cells_bytes + slabs * slab_bytes; }
};

Status launch_bf16(const WeightGradientArgs& args, const Layout& layout, Stream stream);
Status launch_f16(const WeightGradientArgs& args, const Layout& layout, Stream stream);

}  // namespace block_sparse::cuda::sm90::cells
