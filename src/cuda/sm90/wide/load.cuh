// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/ptx/tma.cuh"
#include "cuda/sm90/wide/work.cuh"

namespace block_sparse::cuda::sm90::wide {

constexpr int kPastEnd = 0x7fffffff;

/// 32 blocks of a line, one a lane; positions beyond its end are kPastEnd.
struct Window {
  int position = kPastEnd;
  int slot = 0;
};
__device__ __forceinline__ Window window_at(const Lines& lines, int from, int end) {
  const int i = from + static_cast<int>(threadIdx.x) % 32;
  Window w;
  if (i < end) w = {lines.others[i], lines.block_ids[i]};
  return w;
}

/// A line's blocks in turn. The next 32 are read while these are used.
struct Line {
  Window now, next;
  int from;  // index of the window after `next`
  int end;
  int at;  // in `now`

  __device__ void start(const Lines& lines, const Window& first, int begin, int its_end) {
    now = first;
    end = its_end;
    at = 0;
    from = begin + 64;
    next = window_at(lines, begin + 32, end);
  }
  __device__ int position() const { return __shfl_sync(~0u, now.position, at); }
  __device__ int slot() const { return __shfl_sync(~0u, now.slot, at); }
  __device__ void pass(const Lines& lines) {
    if (++at < 32) return;
    now = next;
    at = 0;
    next = window_at(lines, from, end);
    from += 32;
  }
};

/// Fills the ring; a warp, of which the first lane does the work for the ring. The
/// lines of the two warpgroups are merged, so that each box of x is loaded once for
/// both. The tokens are the CTA's own; each block is loaded by one CTA of the cluster
/// for both.
template <class C>
struct Loader {
  const Params& p;
  const CUtensorMap* x_map;
  const CUtensorMap* w_map;
  Shared<C>& shared;
  const int rank = static_cast<int>(ptx::cluster_rank());
  const bool leads = threadIdx.x % 32 == 0;
  ptx::Ring<C::kStages> ring{};

  __device__ void put(const StageMeta& meta) {
    ptx::barrier_wait(&shared.empty[ring.stage], ring.parity ^ 1);
    if (leads) {
      shared.meta[ring.stage] = meta;
      ptx::barrier_arrive(&shared.full[ring.stage]);
    }
    __syncwarp();
    ring.advance();
  }

  /// 64 of K: `slot` of each warpgroup's block, negative where it has none.
  __device__ void load(const Tile& of, const int (&slot)[kConsumers], int k, int along_k) {
    const int stage = ring.stage;
    ptx::barrier_wait(&shared.empty[stage], ring.parity ^ 1);
    if (leads) {
      std::uint64_t* full = &shared.full[stage];
      const int present = int(slot[0] >= 0) | int(slot[1] >= 0) << 1;
      shared.meta[stage].present = present;
      ptx::barrier_arrive_expect(full, C::kXBytes + __popc(present) * kWBytes);
      ptx::load_box(x_map, shared.x(stage), full, (of.token_tile * kCluster + rank) * C::kTokens,
                    k + along_k);
      const int mine = rank == 0 ? slot[0] : slot[1];
      const int offset = rank == 0 ? of.offset[0] : of.offset[1];
      if (mine >= 0) {
        const int row =
            C::kMContiguous ? mine * p.line_depth + along_k : mine * p.line_height + offset;
        const int col = C::kMContiguous ? offset : along_k;
        ptx::load_box_multicast(w_map, shared.w(stage, rank), full, row, col, (1 << kCluster) - 1);
      }
    }
    __syncwarp();
    ring.advance();
  }

  Tiles tiles{p, static_cast<int>(blockIdx.x) / kCluster};
  Tile tile;                 // the next to be loaded
  Window first[kConsumers];  // of its lines

  /// Looks for a tile, which takes a while.
  __device__ void look_ahead() {
    tile = tiles.next();
#pragma unroll
    for (int c = 0; c < kConsumers; ++c) first[c] = window_at(p.lines, tile.begin[c], tile.end[c]);
  }

  /// All tiles; `look_ahead` has found the first.
  __device__ void run() {
    Line lines[kConsumers];
    while (tile.token_tile >= 0) {
#pragma unroll
      for (int c = 0; c < kConsumers; ++c) {
        lines[c].start(p.lines, first[c], tile.begin[c], tile.end[c]);
      }
      const Tile now = tile;
      look_ahead();
      for (;;) {
        const int at[kConsumers] = {lines[0].position(), lines[1].position()};
        const int position = min(at[0], at[1]);
        if (position == kPastEnd) break;
        const int slot[kConsumers] = {at[0] == position ? lines[0].slot() : -1,
                                      at[1] == position ? lines[1].slot() : -1};
        for (int along_k = 0; along_k < p.line_depth; along_k += kStageK) {
          load(now, slot, position * p.line_depth, along_k);
        }
#pragma unroll
        for (int c = 0; c < kConsumers; ++c) {
          if (slot[c] >= 0) lines[c].pass(p.lines);
        }
      }
      put({StageMeta::kTileEnd,
           {now.out0[0], now.out0[1]},
           (now.token_tile * kCluster + rank) * C::kTokens});
    }
    put({StageMeta::kAllDone, {-1, -1}, 0});
  }
};

}  // namespace block_sparse::cuda::sm90::wide
