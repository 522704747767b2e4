// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/sm90/cells/config.cuh"

namespace block_sparse::cuda::sm90::cells {

/// The first cell of a worker, of the CTA's.
template <class C>
__device__ __forceinline__ int first_cell(const Task& task, int worker) {
  return worker * (task.count / C::kTogether) / C::kWorkers * C::kTogether;
}
template <class C>
__device__ __forceinline__ int cells_of(const Task& task, int worker) {
  return first_cell<C>(task, worker + 1) - first_cell<C>(task, worker);
}

/// Where the sums of a worker's cells go: into the gradient, or, of a part of
/// the tokens, into the piece's slab.
template <class C>
struct CellStore {
  const Params& p;
  const Task& task;
  const Target* targets;

  /// Elements (row, column) and (row, column + 1) of the worker's j-th cell.
  __device__ __forceinline__ void operator()(int j, int row, int column, float a, float b) const {
    if (task.piece.slab >= 0) {
      const std::int64_t cell = std::int64_t(task.piece.slab) * C::kPieceCells + targets[j].index;
      float* to = p.slabs + (cell * C::kHeight + row) * C::kWidth + column;
      *reinterpret_cast<float2*>(to) = make_float2(a, b);
    } else {
      p.output.template store<typename C::Element>(
          targets[j].slot, targets[j].at + row * p.block_width + column, a, b);
    }
  }
};

}  // namespace block_sparse::cuda::sm90::cells
