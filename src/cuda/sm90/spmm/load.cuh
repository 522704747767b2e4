// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/ptx/tma.cuh"
#include "cuda/sm90/spmm/config.cuh"

namespace block_sparse::cuda::sm90::spmm {

/// A place in the ring, `ahead` boxes from a base.
template <class C>
struct Place {
  int stage;
  int box;
  unsigned parity;

  __device__ Place(const ptx::Ring<C::kStages>& base, int ahead) {
    const int stages = base.stage + ahead / C::kBoxes;
    stage = stages % C::kStages;
    box = ahead % C::kBoxes;
    parity = base.parity ^ (stages / C::kStages & 1);
  }
  /// The warp that always fills it: whoever skipped a round of a barrier could not
  /// tell its phases apart.
  __device__ int loader() const { return (stage * C::kBoxes + box) % kLoaders; }
};

/// The producer warps. Each walks the lines of the CTA's tile, which are merged, so
/// that each box of x is loaded once for all of them, and fills every fourth box of
/// the ring: what one warp has to do for a box takes longer than the consumers need
/// for small blocks. The tokens are the CTA's own; each block is loaded by one CTA of
/// the cluster for both. Lane i is concerned with line i % kWalkers, and with part
/// i / kWalkers of a box.
template <class C>
__device__ void load_loop(const Params& p, const CUtensorMap* x_map, const CUtensorMap* w_map,
                          Shared<C>& shared) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int rank = static_cast<int>(ptx::cluster_rank());
  const int line = lane % C::kWalkers;
  const int part = lane / C::kWalkers;
  const bool has_part = part < C::kGroup;
  const int consumer = line / C::kLines;
  const int in_tile = line % C::kLines;
  Slots<C::kWalkers>& slots = shared.slots[warp];
  Walk<C::kWalkers> walk{p.lines, slots};
  ptx::Ring<C::kStages> ring;
  int filled = 0;  // boxes of the ring's present stage

  const int items = pairs_of(p) * p.token_tiles;
  for (int item = blockIdx.x / kCluster; item < items; item += gridDim.x / kCluster) {
    const Work work = work_of(p, item);
    const int token0 = (work.token_tile * kCluster + rank) * C::kTokens;
    const int segment = work.pair * kConsumers + consumer;
    const bool active = segment < p.segments;
    const Segment place = active ? segment_of(p.lines, C::kSide, segment) : Segment{0, 0};
    walk.start(place.line + in_tile, active && lane < C::kWalkers);

    for (int first = 0; first < p.positions; first += 32) {
      unsigned any = walk.batch(first);  // the first position of each box that is needed
      if constexpr (C::kGroup == 4) any = (any | any >> 1 | any >> 2 | any >> 3) & 0x11111111u;
      const int before = __popc(any & ((1u << lane) - 1));
      const bool own = Place<C>(ring, filled + before).loader() == warp;
      unsigned left = any & __ballot_sync(~0u, own);
      for (; left != 0; left &= left - 1) {
        const int i = __ffs(static_cast<int>(left)) - 1;
        const int ahead = filled + __popc(any & ((1u << i) - 1));
        const unsigned hits = __shfl_sync(~0u, walk.hits, i + (has_part ? part : 0));
        const bool hit = has_part && (hits >> line & 1);
        const int blocks = __popc(__ballot_sync(~0u, hit));
        const int slot = hit ? slots.of[line][i + part] : 0;
        const Place<C> at(ring, ahead);
        ptx::barrier_wait(&shared.empty[at.stage], at.parity ^ 1);
        std::uint64_t* full = &shared.full[at.stage];
        const int in_stage = at.box * C::kGroup + part;
        if (lane == 0) {
          ptx::barrier_expect(full, C::kXBoxBytes + blocks * C::kBlockBytes);
          ptx::load_box(x_map, shared.x(at.stage, at.box), full, token0, (first + i) * C::kSide);
        }
        if (hit && line % kCluster == rank) {
          ptx::load_box_multicast(w_map,
                                  shared.w(at.stage, in_stage, consumer) + in_tile * C::kBlockBytes,
                                  full, slot * (C::kBlockBytes / 128), 0, (1 << kCluster) - 1);
        }
        if (has_part && line == 0) {
          shared.meta[at.stage].parts[in_stage] = static_cast<std::uint16_t>(hits);
        }
        __syncwarp();
        if (lane == 0) ptx::barrier_arrive(full);
      }
      const Place<C> next(ring, filled + __popc(any));
      ring.stage = next.stage;
      ring.parity = next.parity;
      filled = next.box;
    }
    // The rest of the stage, or a whole one, says that the tile ends.
    for (; filled < C::kBoxes; ++filled) {
      const Place<C> at(ring, filled);
      if (at.loader() != warp) continue;
      ptx::barrier_wait(&shared.empty[at.stage], at.parity ^ 1);
      __syncwarp();
      if (lane == 0) {
        for (int i = at.box * C::kGroup; i < (at.box + 1) * C::kGroup; ++i) {
          shared.meta[at.stage].parts[i] = i == C::kParts - 1 ? StageMeta::kLast : 0;
        }
        ptx::barrier_arrive(&shared.full[at.stage]);
      }
    }
    filled = 0;
    ring.advance();
  }
}

}  // namespace block_sparse::cuda::sm90::spmm
