// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/plan.h"

/// Where along K a strip of outputs has blocks.
namespace block_sparse::cuda::sm80::decode {

/// A list of positions, in shared memory, of some of the blocks of `Lines` lines at once.
template <int Lines, int Threads>
struct Positions {
  static constexpr int kMax = 1024;
  int count;
  int counts[Threads / 32];
  int others[kMax];  // along K, in blocks, from `first` on
  // Of one line, by place in the list; of several, by position: -1 where one has no block.
  alignas(16) int slots[kMax * Lines];

  struct Line {
    int begin, end;
  };

  /// Before `fill`, by all threads.
  __device__ __forceinline__ void clear() {
    if constexpr (Lines > 1) {
      auto* all = reinterpret_cast<int4*>(slots);
      for (int i = static_cast<int>(threadIdx.x); i < kMax * Lines / 4; i += Threads) {
        all[i] = make_int4(-1, -1, -1, -1);
      }
    }
  }

  /// How many times `fill` is needed.
  static __device__ __forceinline__ int parts(const Line (&line)[Lines], int blocks_along_k) {
    return ((Lines == 1 ? line[0].end - line[0].begin : blocks_along_k) + kMax - 1) / kMax;
  }

  /// Takes part `part`: of one line, so many of its blocks; of several, so many positions. The
  /// position that `others` counts from.
  __device__ __forceinline__ int fill(const cuda::Lines& lines, const Line (&line)[Lines],
                                      int part) {
    const int thread = static_cast<int>(threadIdx.x);
    if constexpr (Lines == 1) {
      const int begin = line[0].begin + part * kMax;
      const int length = min(line[0].end - begin, kMax);
      for (int i = thread; i < length; i += Threads) {
        others[i] = lines.others[begin + i];
        slots[i] = lines.block_ids[begin + i];
      }
      if (thread == 0) count = length;
      __syncthreads();
      return 0;
    } else {
      const int first = part * kMax;
#pragma unroll
      for (int l = 0; l < Lines; ++l) {
        for (int i = line[l].begin + thread; i < line[l].end; i += Threads) {
          const int at = lines.others[i] - first;
          if (at >= 0 && at < kMax) slots[at * Lines + l] = lines.block_ids[i];
        }
      }
      __syncthreads();
      compact();
      return first;
    }
  }

  /// The slots of the lines at place `i` of the list, whose position is `other`.
  __device__ __forceinline__ void slots_at(int i, int other, int (&slot)[Lines]) const {
    if constexpr (Lines == 4) {
      const int4 v = *reinterpret_cast<const int4*>(slots + 4 * other);
      slot[0] = v.x, slot[1] = v.y, slot[2] = v.z, slot[3] = v.w;
    } else if constexpr (Lines == 2) {
      const int2 v = *reinterpret_cast<const int2*>(slots + 2 * other);
      slot[0] = v.x, slot[1] = v.y;
    } else {
      slot[0] = slots[i];
    }
  }

 private:
  /// Lists the positions at which any line has a block.
  __device__ __forceinline__ void compact() {
    constexpr int kWarps = Threads / 32;
    constexpr int kRounds = kMax / Threads;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int warp = static_cast<int>(threadIdx.x) / 32;
    unsigned stored[kRounds];
    int mine = 0;
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      const int at = (warp * kRounds + r) * 32 + lane;
      int slot[Lines];
      slots_at(at, at, slot);
      int any = -1;  // no sign once a slot has none
#pragma unroll
      for (const int s : slot) any &= s;
      stored[r] = __ballot_sync(~0u, any >= 0);
      mine += __popc(stored[r]);
    }
    if (lane == 0) counts[warp] = mine;
    __syncthreads();
    int place = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) place += counts[w];
    }
    if (warp == kWarps - 1 && lane == 0) count = place + mine;
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      const unsigned before = stored[r] & ((1u << lane) - 1);
      if ((stored[r] >> lane & 1) != 0) {
        others[place + __popc(before)] = (warp * kRounds + r) * 32 + lane;
      }
      place += __popc(stored[r]);
    }
    __syncthreads();
  }
};

}  // namespace block_sparse::cuda::sm80::decode
