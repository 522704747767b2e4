// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/ptx/tma.cuh"
#include "cuda/sm90/cells/setup.cuh"

namespace block_sparse::cuda::sm90::cells {

/// The producers: four warps, a box a lane, as a warp issues one after the other.
template <class C>
__device__ void load_loop(const Params& p, const CUtensorMap* dy_map, const CUtensorMap* x_map,
                          Shared<C>& shared) {
  static_assert(kMaxStageBoxes <= 128);
  const int index = static_cast<int>(threadIdx.x) % 32 * 4 + static_cast<int>(threadIdx.x) / 32;
  Task task;
  Place at;
  for (int item = first_item<C>(p); set_up<C>(p, shared, item, &task); item += p.rounds.clusters) {
    const Box box = shared.boxes[min(index, kMaxStageBoxes - 1)];
    const bool loads = index < task.boxes && box.loaded_here;
    const CUtensorMap* map = box.of_dy ? dy_map : x_map;
    // Stages may lie elsewhere than those of the piece before, which the other
    // CTA must have read.
    for (int s = 0; s < kMaxStages; ++s) {
      ptx::barrier_wait(&shared.empty[s], (at.parities >> s & 1) ^ 1);
    }
    at.stage = 0;
    for (int s = 0; s < task.stages; ++s) {
      const int token = task.begin + s * p.rounds.stage_tokens;
      ptx::barrier_wait(&shared.empty[at.stage], at.parity() ^ 1);
      std::uint64_t* full = &shared.full[at.stage];
      if (threadIdx.x == 0) ptx::barrier_arrive_expect(full, task.boxes * task.box_bytes);
      __syncwarp();
      if (loads) {
        unsigned char* to = shared.ring + at.stage * task.stage_bytes + index * task.box_bytes;
        if (box.for_both) {
          ptx::load_box_multicast(map, to, full, token, box.feature, (1 << C::kCluster) - 1);
        } else {
          ptx::load_box(map, to, full, token, box.feature);
        }
      }
      at.advance(task.ring_stages);
    }
    if (C::kCluster == 1 && p.rounds.parts > 1) {
      // Those of `SumStore`.
      __syncwarp();
      ptx::cluster_sync();
      ptx::cluster_sync();
    }
  }
}

}  // namespace block_sparse::cuda::sm90::cells
