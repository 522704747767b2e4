// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/ptx/tma.cuh"
#include "cuda/sm90/spmm/config.cuh"

namespace block_sparse::cuda::sm90::spmm {

/// A place in the ring, `ahead` parts of stages from a base.
template <class C>
struct Place {
  int stage;
  int part;
  unsigned parity;

  __device__ Place(const ptx::Ring<C::kStages>& base, int ahead) {
    const int stages = base.stage + ahead / C::kParts;
    stage = stages % C::kStages;
    part = ahead % C::kParts;
    parity = base.parity ^ (stages / C::kStages & 1);
  }
  /// The warp that always fills it: whoever skipped a round of a barrier could not
  /// tell its phases apart.
  __device__ int loader() const { return (stage * C::kParts + part) % kLoaders; }
};

/// The producer warps. Each walks the lines of the CTA's tile, which are merged, so
/// that each position along K is loaded once for all of them, and fills every
/// fourth part of the ring: what one warp has to do for a position takes longer than
/// the consumers need for a small block. The tokens of a position are the CTA's own;
/// each block is loaded by one CTA of the cluster for both.
template <class C>
__device__ void load_loop(const Params& p, const CUtensorMap* x_map, const CUtensorMap* w_map,
                          Shared<C>& shared) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int rank = static_cast<int>(ptx::cluster_rank());
  const bool walks = lane < C::kWalkers;
  const bool loads = walks && lane % kCluster == rank;
  const int consumer = lane / C::kLines;
  const int in_tile = lane % C::kLines;
  const int chunks = p.line_depth / C::kDepth;
  Slots<C::kWalkers>& slots = shared.slots[warp];
  Walk<C::kWalkers> walk{p.lines, slots};
  ptx::Ring<C::kStages> ring;
  int filled = 0;  // parts of the ring's present stage

  const int items = pairs_of(p) * p.token_tiles;
  for (int item = blockIdx.x / kCluster; item < items; item += gridDim.x / kCluster) {
    const Work work = work_of(p, item);
    const int token0 = (work.token_tile * kCluster + rank) * C::kTokens;
    const int segment = work.pair * kConsumers + consumer;
    const bool active = walks && segment < p.segments;
    const Segment place = active ? segment_of(p.lines, p.line_height, segment) : Segment{0, 0};
    walk.start(place.line + in_tile, active);

    for (int first = 0; first < p.positions; first += 32) {
      const unsigned any = walk.batch(first);
      const int before = __popc(any & ((1u << lane) - 1));
      const bool own = chunks > 1 || Place<C>(ring, filled + before).loader() == warp;
      unsigned left = any & __ballot_sync(~0u, own);
      for (; left != 0; left &= left - 1) {
        const int i = __ffs(static_cast<int>(left)) - 1;
        const int ahead = filled + __popc(any & ((1u << i) - 1)) * chunks;
        const unsigned hits = __shfl_sync(~0u, walk.hits, i);
        const bool hit = loads && (hits >> lane & 1);
        const int slot = hit ? slots.of[lane][i] : 0;
        for (int chunk = 0; chunk < chunks; ++chunk) {
          const Place<C> at(ring, ahead + chunk);
          if (at.loader() != warp) continue;
          ptx::barrier_wait(&shared.empty[at.stage], at.parity ^ 1);
          std::uint64_t* full = &shared.full[at.stage];
          const int along_k = chunk * C::kDepth;
          if (lane == 0) {
            ptx::barrier_expect(full, C::kXPartBytes + __popc(hits) * C::kBlockBytes);
            ptx::load_box(x_map, shared.x(at.stage, at.part), full, token0,
                          (first + i) * p.line_depth + along_k);
          }
          if (hit) {
            const int row = C::kMContiguous ? slot * p.line_depth + along_k
                                            : slot * p.line_height + place.offset;
            const int col = C::kMContiguous ? place.offset : along_k;
            ptx::load_box_multicast(
                w_map, shared.w(at.stage, at.part, consumer) + in_tile * C::kBlockBytes, full, row,
                col, (1 << kCluster) - 1);
          }
          __syncwarp();
          if (lane == 0) {
            shared.meta[at.stage].parts[at.part] = static_cast<std::uint16_t>(hits);
            ptx::barrier_arrive(full);
          }
        }
      }
      const Place<C> next(ring, filled + __popc(any) * chunks);
      ring.stage = next.stage;
      ring.parity = next.parity;
      filled = next.part;
    }
    // The rest of the stage, or a whole one, says that the tile ends.
    for (; filled < C::kParts; ++filled) {
      const Place<C> at(ring, filled);
      if (at.loader() != warp) continue;
      ptx::barrier_wait(&shared.empty[at.stage], at.parity ^ 1);
      __syncwarp();
      if (lane == 0) {
        shared.meta[at.stage].parts[at.part] = filled == C::kParts - 1 ? StageMeta::kLast : 0;
        ptx::barrier_arrive(&shared.full[at.stage]);
      }
    }
    filled = 0;
    ring.advance();
  }
}

}  // namespace block_sparse::cuda::sm90::spmm
