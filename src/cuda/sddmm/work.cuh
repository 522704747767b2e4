// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace block_sparse::cuda {

/// How the stored blocks and the tokens are cut into pieces of work.
struct SddmmPieces {
  const std::int32_t* crow;
  int lines;
  int tokens;
  int splits;        // parts of the tokens, summed afterwards when more than one
  int split_tokens;  // a multiple of a kernel's K of a stage
};

/// Blocks [first, first + count) of a line, over one part of the tokens.
struct SddmmWork {
  int line;
  int first;
  int count;
  int split;
};

/// The item-th piece of work, found by a warp together: pieces are numbered
/// line by line, `blocks` blocks each, all of them for the first part of the
/// tokens, then for the next, so that what is in flight shares its tokens in L2.
__device__ inline bool find_work(const SddmmPieces& p, int item, int blocks, SddmmWork* work) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int before = 0;  // pieces of the parts and lines passed
  for (int split = 0; split < p.splits; ++split) {
    for (int base = 0; base < p.lines; base += 32) {
      const int line = base + lane;
      const int begin = line < p.lines ? p.crow[line] : 0;
      const int end = line < p.lines ? p.crow[line + 1] : 0;
      const int pieces = (end - begin + blocks - 1) / blocks;
      int sum = pieces;
#pragma unroll
      for (int d = 1; d < 32; d *= 2) {
        const int below = __shfl_up_sync(~0u, sum, d);
        if (lane >= d) sum += below;
      }
      const unsigned reached = __ballot_sync(~0u, before + sum > item);
      if (reached != 0) {
        const int owner = __ffs(static_cast<int>(reached)) - 1;
        const int first = begin + (item - (before + sum - pieces)) * blocks;
        work->line = base + owner;
        work->first = __shfl_sync(~0u, first, owner);
        work->count = min(blocks, __shfl_sync(~0u, end, owner) - work->first);
        work->split = split;
        return true;
      }
      before += __shfl_sync(~0u, sum, 31);
    }
    if (before == 0) return false;
  }
  return false;
}

template <int Blocks>
__device__ bool find_work(const SddmmPieces& p, int item, SddmmWork* work) {
  return find_work(p, item, Blocks, work);
}

/// The tokens of a part: [begin, end).
struct TokenRange {
  int begin;
  int end;
};
__device__ __forceinline__ TokenRange tokens_of(const SddmmPieces& p, int split) {
  const int begin = split * p.split_tokens;
  return {begin, min(begin + p.split_tokens, p.tokens)};
}

}  // namespace block_sparse::cuda
