// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/ptx/launch.cuh"
#include "cuda/ptx/tma.cuh"
#include "cuda/sm90/cells/load.cuh"
#include "cuda/sm90/cells/multiply_gather.cuh"
#include "cuda/sm90/cells/multiply_warp.cuh"
#include "cuda/sm90/cells/multiply_warpgroup.cuh"

namespace block_sparse::cuda::sm90::cells {

template <class C>
__device__ void multiply_loop(const Params& p, Shared<C>& shared) {
  using Multiplier = std::conditional_t<
      C::kGathered, GatherMultiplier<C>,
      std::conditional_t<C::kWorkers == 1, WarpgroupMultiplier<C>, WarpMultiplier<C>>>;
  Multiplier multiplier{p, shared};
  Task task;
  for (int item = first_item<C>(p); set_up<C>(p, shared, item, &task); item += p.rounds.clusters) {
    multiplier.run(task);
  }
}

/// dvalues = dyᵀ x on the stored blocks: a warpgroup that loads and two that
/// multiply, persistent over pieces of the plane.
template <class C>
__global__ void __launch_bounds__(kThreads, 1)
    kernel(const Params p, const __grid_constant__ CUtensorMap dy_map,
           const __grid_constant__ CUtensorMap x_map) {
  extern __shared__ unsigned char raw[];
  auto& shared =
      *reinterpret_cast<Shared<C>*>(raw + (1024 - ptx::shared_address(raw) % 1024) % 1024);
  if (threadIdx.x == 0) {
    for (int s = 0; s < kMaxStages; ++s) {
      ptx::barrier_init(&shared.full[s], 1);
      ptx::barrier_init(&shared.empty[s], C::kCluster * kConsumers * 4);
    }
    ptx::fence_barrier_init();
    ptx::prefetch_map(&dy_map);
    ptx::prefetch_map(&x_map);
  }
  ptx::cluster_sync();
  ptx::allow_next_kernel();
  ptx::wait_for_kernels_before();
  if (threadIdx.x < 128) {
    ptx::registers_decrease<kProducerRegisters>();
    load_loop<C>(p, &dy_map, &x_map, shared);
  } else {
    ptx::registers_increase<kConsumerRegisters>();
    multiply_loop<C>(p, shared);
  }
  // A CTA's peer may still arrive at its barriers.
  __syncwarp();
  ptx::cluster_sync();
}

}  // namespace block_sparse::cuda::sm90::cells
