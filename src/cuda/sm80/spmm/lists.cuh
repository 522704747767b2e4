// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "cuda/plan.h"

/// The blocks that a CTA multiplies, a window of them at a time in shared memory.
/// An entry is a position along K at which a line of the CTA has a block.
namespace block_sparse::cuda::sm80::spmm {

/// The line that a CTA's `group` of `Count` lines has in place `i`, heaviest tiles of
/// 64 outputs first; lines.count or more where it has none.
template <int Height, int Count>
__device__ __forceinline__ int line_of(const Lines& lines, int group, int i) {
  constexpr int kPerTile = static_cast<int>(lines_per_tile(Height));
  const int place = group * Count + i;
  const int tile = place / kPerTile;
  if (lines.order == nullptr || tile * kPerTile >= lines.count) return place;
  return lines.order[tile] * kPerTile + place % kPerTile;
}

/// One line: its list as it is.
template <int Height, int Count>
struct List {
  static_assert(Count == 1);
  // A few more, and blocks 32 high would have a CTA less on an H100.
  static constexpr int kWindow = 192;
  int position[kWindow];
  int id[kWindow];

  /// How far the windows have come; the same in every thread.
  struct Cursor {
    int next, end;
    __device__ bool more() const { return next < end; }
  };
  __device__ Cursor start(const Lines& lines, int group, int /*positions*/) {
    const int line = line_of<Height, 1>(lines, group, 0);
    return {lines.pointers[line], lines.pointers[line + 1]};
  }
  /// Fills the window, which no thread reads any more, and returns its entries. To
  /// be called by all threads.
  __device__ int fill(const Lines& lines, Cursor& cursor) {
    const int count = min(kWindow, cursor.end - cursor.next);
    for (int e = static_cast<int>(threadIdx.x); e < count; e += static_cast<int>(blockDim.x)) {
      position[e] = lines.others[cursor.next + e];
      id[e] = lines.block_ids[cursor.next + e];
    }
    cursor.next += count;
    __syncthreads();
    return count;
  }
  __device__ __forceinline__ int position_of(int entry) const { return position[entry]; }
  __device__ __forceinline__ int slot(int /*line*/, int entry) const { return id[entry]; }
};

/// Several lines: the union of their positions, with a bit a line.
template <int Height, int Count>
  requires(Count > 1)
struct List<Height, Count> {
  static constexpr int kWindow = 256;
  int id[Count][kWindow];  // by entry; -1: the line has no block there
  int position[kWindow];
  std::uint8_t bits[kWindow];
  int next[Count];
  int end[Count];
  int entries;

  struct Cursor {
    int first, positions;
    __device__ bool more() const { return first < positions; }
  };
  __device__ Cursor start(const Lines& lines, int group, int positions) {
    const int i = static_cast<int>(threadIdx.x);
    if (i < Count) {
      const int line = line_of<Height, Count>(lines, group, i);
      const bool exists = line < lines.count;
      next[i] = exists ? lines.pointers[line] : 0;
      end[i] = exists ? lines.pointers[line + 1] : 0;
    }
    return {0, positions};
  }
  __device__ int fill(const Lines& lines, Cursor& cursor) {
    const int thread = static_cast<int>(threadIdx.x);
    const int lane = thread % 32;
    const int warps = static_cast<int>(blockDim.x) / 32;
    for (int e = thread; e < Count * kWindow; e += static_cast<int>(blockDim.x)) {
      id[e / kWindow][e % kWindow] = -1;
    }
    __syncthreads();
    // Each line's blocks to their positions in the window …
    for (int l = thread / 32; l < Count; l += warps) {
      int from = next[l];
      for (bool all = true; all;) {
        const int i = from + lane;
        const int at = i < end[l] ? lines.others[i] - cursor.first : kWindow;
        const bool here = at < kWindow;
        if (here) id[l][at] = lines.block_ids[i];
        from += __popc(__ballot_sync(~0u, here));
        all = __all_sync(~0u, here);
      }
      if (lane == 0) next[l] = from;
    }
    __syncthreads();
    // … and the positions that any line has, to the front.
    if (thread < 32) {
      int before = 0;
      for (int at = lane; at < kWindow; at += 32) {
        int ids[Count];
        unsigned stored = 0;
#pragma unroll
        for (int l = 0; l < Count; ++l) {
          ids[l] = id[l][at];
          stored |= (ids[l] >= 0 ? 1u : 0u) << l;
        }
        const unsigned any = __ballot_sync(~0u, stored != 0);
        if (stored != 0) {
          const int entry = before + __popc(any & ((1u << lane) - 1));
          position[entry] = cursor.first + at;
          bits[entry] = static_cast<std::uint8_t>(stored);
#pragma unroll
          for (int l = 0; l < Count; ++l) id[l][entry] = ids[l];
        }
        before += __popc(any);
        __syncwarp();
      }
      if (lane == 0) entries = before;
    }
    __syncthreads();
    cursor.first += kWindow;
    return entries;
  }
  __device__ __forceinline__ int position_of(int entry) const { return position[entry]; }
  __device__ __forceinline__ int slot(int line, int entry) const { return id[line][entry]; }
};

}  // namespace block_sparse::cuda::sm80::spmm
