// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/sm90/cells/plane.h"

namespace block_sparse::cuda::sm90::cells {

struct Piece {
  int unit;
  int first;  // in the list of cells
  int count;
};

/// The number of pieces of the plane; by a warp together. `upto` becomes the
/// sum over the units of this lane and the lanes before.
__device__ __forceinline__ int count_pieces(const Plane& p, const Rounds& r, const int* counts,
                                            int* upto) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int units = p.units();
  const int a_lane = ceil_div(units, 32);
  int sum = 0;
  for (int i = 0; i < a_lane; ++i) {
    const int u = lane * a_lane + i;
    if (u < units) sum += pieces_of(p, r, counts[u]);
  }
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const int below = __shfl_up_sync(~0u, sum, d);
    if (lane >= d) sum += below;
  }
  *upto = sum;
  return __shfl_sync(~0u, sum, 31);
}

/// Cells of the index-th piece of the plane, by a warp together.
__device__ __forceinline__ void locate_piece(const Plane& p, const Rounds& r, const int* counts,
                                             int upto, int index, Piece* piece) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int a_lane = ceil_div(p.units(), 32);
  const int owner = __ffs(static_cast<int>(__ballot_sync(~0u, upto > index))) - 1;
  int before = owner == 0 ? 0 : __shfl_sync(~0u, upto, max(owner - 1, 0));
  for (int base = owner * a_lane;; base += 32) {
    const int u = base + lane;
    const int cells = u < min((owner + 1) * a_lane, p.units()) ? counts[u] : 0;
    const int pieces = pieces_of(p, r, cells);
    int sum = pieces;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
      const int below = __shfl_up_sync(~0u, sum, d);
      if (lane >= d) sum += below;
    }
    const unsigned reached = __ballot_sync(~0u, before + sum > index);
    if (reached == 0) {
      before += __shfl_sync(~0u, sum, 31);
      continue;
    }
    const int at = __ffs(static_cast<int>(reached)) - 1;
    const int n = __shfl_sync(~0u, cells, at);
    const int k = __shfl_sync(~0u, pieces, at);
    const int i = index - (before + __shfl_sync(~0u, sum - pieces, at));
    const auto cut = [&](int part) {
      return static_cast<int>(std::int64_t(part) * (n / p.together) / k) * p.together;
    };
    piece->unit = base + at;
    piece->first = unit_of(p, piece->unit).base + cut(i);
    piece->count = cut(i + 1) - cut(i);
    return;
  }
}

/// The index-th piece, if there is one; by a warp together.
__device__ __forceinline__ bool find_piece(const Plane& p, const Rounds& r, const int* counts,
                                           int index, Piece* piece) {
  int upto;
  if (index >= count_pieces(p, r, counts, &upto)) return false;
  locate_piece(p, r, counts, upto, index, piece);
  return true;
}

}  // namespace block_sparse::cuda::sm90::cells
