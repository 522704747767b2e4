// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/plan.h"

/// The index as the SpMM kernels of Hopper walk it.
namespace block_sparse::cuda::sm90 {

constexpr int kOuts = 64;  // outputs of a warpgroup: M of wgmma

/// The first line of a segment of 64 outputs and its offset within a taller line.
struct Segment {
  int line;
  int offset;
};
__device__ __forceinline__ Segment segment_of(const Lines& lines, int line_height, int segment) {
  const int a_line = max(line_height / kOuts, 1);
  const int tile = segment / a_line;
  const int ordered = lines.order == nullptr ? tile : lines.order[tile];
  return {ordered * max(kOuts / line_height, 1), (segment - tile * a_line) * kOuts};
}

/// Slots of a batch of 32 positions, written and read by one warp.
template <int Count>
struct Slots {
  int of[Count][32];
};

/// A warp's walk along K over the blocks of `Count` lines at once, 32 positions
/// at a time: which lines have a block there, and in which slots.
template <int Count>
struct Walk {
  const Lines& lines;
  Slots<Count>& slots;
  int next = 0;  // lane i: the first block of line i that has not been passed
  int end = 0;
  unsigned hits = 0;  // lane i: bit l says that line l has a block at position i

  /// Lane i gives its line, if it is `active`.
  __device__ void start(int line, bool active) {
    next = end = 0;
    if (active && line < lines.count) {
      next = lines.pointers[line];
      end = lines.pointers[line + 1];
    }
  }

  /// The positions of [first, first + 32) at which any line has a block, as bits.
  __device__ __forceinline__ unsigned batch(int first) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    int at[Count], id[Count];
#pragma unroll
    for (int l = 0; l < Count; ++l) {
      const int from = __shfl_sync(~0u, next, l) + lane;
      const bool valid = from < __shfl_sync(~0u, end, l);
      at[l] = valid ? lines.others[from] - first : 32;
      id[l] = valid ? lines.block_ids[from] : 0;
    }
    hits = 0;
    __syncwarp();  // the slots of the last batch have been read
#pragma unroll
    for (int l = 0; l < Count; ++l) {
      const unsigned mask = __reduce_or_sync(~0u, at[l] < 32 ? 1u << at[l] : 0u);
      if (at[l] < 32) slots.of[l][at[l]] = id[l];
      hits |= (mask >> lane & 1) << l;
      if (lane == l) next += __popc(mask);
    }
    __syncwarp();
    return __ballot_sync(~0u, hits != 0);
  }
};

}  // namespace block_sparse::cuda::sm90
