// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/sm90/cells/plane.h"

namespace block_sparse::cuda::sm90::cells {

/// A piece, or the part of its tokens that a cluster works on.
struct Piece {
  int unit;
  int first;  // in the list of cells
  int count;
  int begin, end;  // tokens
  int slab;        // where its sums go when they are partial, or -1
};

struct PieceCount {
  int all;
  int whole;   // in full rounds
  int tail;    // the rest
  int splits;  // of the rest
  __device__ int items() const { return whole + tail * splits; }
};

/// The number of pieces of the plane; by a warp together. `upto` becomes the
/// sum over the units of this lane and the lanes before.
__device__ __forceinline__ PieceCount count_pieces(const Plane& p, const Rounds& r,
                                                   const int* counts, int* upto) {
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
  PieceCount n;
  n.all = __shfl_sync(~0u, sum, 31);
  n.tail = n.all % r.clusters;
  n.whole = n.all - n.tail;
  const int splits = lane + 1;
  unsigned cost = ~0u;
  if (splits <= kMaxSplits && can_split(r, n.tail, splits)) {
    cost = static_cast<unsigned>(min(tail_ns(r, n.tail, splits), std::int64_t(0x7fffffff)));
  }
  const unsigned least = __reduce_min_sync(~0u, cost);
  n.splits = __ffs(static_cast<int>(__ballot_sync(~0u, cost == least)));
  return n;
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
    const int together = p.pairs ? 2 : 1;
    const auto cut = [&](int part) {
      return static_cast<int>(std::int64_t(part) * (n / together) / k) * together;
    };
    piece->unit = base + at;
    piece->first = unit_of(p, piece->unit).base + cut(i);
    piece->count = cut(i + 1) - cut(i);
    return;
  }
}

/// The item-th piece of work, by a warp together.
__device__ __forceinline__ bool find_piece(const Plane& p, const Rounds& r, const int* counts,
                                           int item, Piece* piece) {
  int upto;
  const PieceCount n = count_pieces(p, r, counts, &upto);
  if (item >= n.items()) return false;
  int index = item;
  piece->begin = 0;
  piece->end = r.tokens;
  piece->slab = -1;
  if (item >= n.whole && n.splits > 1) {
    // All pieces of one part of the tokens before those of the next.
    const int split = (item - n.whole) / n.tail;
    const int tail = (item - n.whole) % n.tail;
    index = n.whole + tail;
    const int tokens = ceil_div(ceil_div(r.tokens, n.splits), r.stage_tokens) * r.stage_tokens;
    piece->begin = min(split * tokens, r.tokens);
    piece->end = min(piece->begin + tokens, r.tokens);
    piece->slab = tail * n.splits + split;
  }
  locate_piece(p, r, counts, upto, index, piece);
  return true;
}

}  // namespace block_sparse::cuda::sm90::cells
