// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/ptx/tma.cuh"
#include "cuda/sm90/spmm/config.cuh"

namespace block_sparse::cuda::sm90::spmm {

/// A lane's walk over the blocks of one line, in ascending position along K.
/// The next block's position and slot are read one step ahead of their use.
struct Walker {
  static constexpr unsigned kEnd = 0xffffffffu;
  const Lines& lines;
  int next;
  int end;
  unsigned at = kEnd;  // position along K, or kEnd
  int slot = 0;
  unsigned at_next = kEnd;
  int slot_next = 0;

  __device__ Walker(const Lines& l, int line, bool active) : lines(l), next(0), end(0) {
    if (active && line < l.count) {
      next = l.pointers[line];
      end = l.pointers[line + 1];
    }
    step();
    step();
  }
  __device__ __forceinline__ void step() {
    at = at_next;
    slot = slot_next;
    at_next = kEnd;
    if (next < end) {
      at_next = static_cast<unsigned>(lines.others[next]);
      slot_next = lines.block_ids[next];
      ++next;
    }
  }
};

/// The producer warp: lane i walks line i of the CTA's tile; together they
/// merge the lines, so that each position along K is loaded once for all of
/// them. The tokens of a position are the CTA's own; each block is loaded by
/// one CTA of the cluster for both.
template <class C>
__device__ void load_loop(const Params& p, const CUtensorMap* x_map, const CUtensorMap* w_map,
                          Shared<C>& shared) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int rank = static_cast<int>(ptx::cluster_rank());
  const bool walks = lane < C::kWalkers;
  const bool loads = walks && lane % kCluster == rank;
  const int chunks = p.line_depth / C::kDepth;
  ptx::Ring<C::kStages> ring;

  const int items = pairs_of(p) * p.token_tiles;
  for (int item = blockIdx.x / kCluster; item < items; item += gridDim.x / kCluster) {
    const Work work = work_of(p, item);
    const int token0 = (work.token_tile * kCluster + rank) * C::kTokens;
    const int consumer = lane / C::kLines;
    const int in_tile = lane % C::kLines;
    const int segment = work.pair * kConsumers + consumer;
    const bool active = walks && segment < p.segments;
    const Segment place = active ? segment_of(p, segment) : Segment{0, 0};
    Walker walker(p.lines, place.line + in_tile, active);

    unsigned position = __reduce_min_sync(~0u, walker.at);
    unsigned present = 0;
    int part = 0;
    bool last = false;
    do {
      const bool hit = walker.at == position && position != Walker::kEnd;
      const unsigned hits = __ballot_sync(~0u, hit);
      const int slot = walker.slot;
      if (hit) walker.step();
      const unsigned following = __reduce_min_sync(~0u, walker.at);
      for (int chunk = 0; chunk < chunks; ++chunk) {
        if (part == 0) ptx::barrier_wait(&shared.empty[ring.stage], ring.parity ^ 1);
        std::uint64_t* full = &shared.full[ring.stage];
        if (hits != 0) {
          if (lane == 0) {
            ptx::barrier_expect(full, C::kXPartBytes + __popc(hits) * C::kBlockBytes);
            ptx::load_box(x_map, shared.x(ring.stage, part), full, token0,
                          static_cast<int>(position) * p.line_depth + chunk * C::kDepth);
          }
          if (hit && loads) {
            const int along_k = chunk * C::kDepth;
            const int row = C::kMContiguous ? slot * p.line_depth + along_k
                                            : slot * p.line_height + place.offset;
            const int col = C::kMContiguous ? place.offset : along_k;
            ptx::load_box_multicast(w_map,
                                    shared.w(ring.stage, part, consumer) + in_tile * C::kBlockBytes,
                                    full, row, col, (1 << kCluster) - 1);
          }
          present |= hits << (part * C::kWalkers);
          ++part;
        }
        last = following == Walker::kEnd && (chunk == chunks - 1 || hits == 0);
        if (part == C::kParts || last) {
          __syncwarp();
          if (lane == 0) {
            shared.meta[ring.stage] = {present, last};
            ptx::barrier_arrive(full);
          }
          ring.advance();
          present = 0;
          part = 0;
        }
        if (last) break;
      }
      position = following;
    } while (!last);
  }
}

}  // namespace block_sparse::cuda::sm90::spmm
