// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/sm90/wide/load.cuh"
#include "cuda/sm90/wide/multiply.cuh"

namespace block_sparse::cuda::sm90::wide {

/// yᵀ = W xᵀ: a warp that loads, two that store and two consumer warpgroups a CTA,
/// persistent over tiles of 128 outputs x Tokens tokens; two CTAs with the same outputs
/// form a cluster and share each block of W they load.
template <class C>
__global__ void __cluster_dims__(kCluster, 1, 1) __launch_bounds__(kThreads, 1)
    kernel(const Params p, const __grid_constant__ CUtensorMap x_map,
           const __grid_constant__ CUtensorMap w_map, const __grid_constant__ CUtensorMap y_map,
           const __grid_constant__ CUtensorMap preactivation_map) {
  extern __shared__ unsigned char raw[];
  // Dynamic shared memory is only 16-byte aligned; swizzled tiles need 1024.
  auto& shared =
      *reinterpret_cast<Shared<C>*>(raw + (1024 - ptx::shared_address(raw) % 1024) % 1024);
  if (threadIdx.x == 0) {
    for (int s = 0; s < C::kStages; ++s) {
      ptx::barrier_init(&shared.full[s], 1);
      // One arrival a consumer warp of every CTA that the stage was read with.
      ptx::barrier_init(&shared.empty[s], kConsumers * 4 * kCluster);
    }
    for (int c = 0; c < kConsumers; ++c) {
      ptx::barrier_init(&shared.ordered[c], 4);
      ptx::barrier_init(&shared.stored[c], 1);
    }
    ptx::fence_barrier_init();
  }
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (warp < 4) {
    ptx::registers_decrease<kProducerRegisters>();
    if (warp == 0) {
      Loader<C> loader{p, &x_map, &w_map, shared};
      loader.look_ahead();  // while the cluster comes together
      ptx::cluster_sync();
      loader.run();
    } else {
      ptx::cluster_sync();
      if (warp <= kConsumers && threadIdx.x % 32 == 0) {
        store_loop<C>(p, &y_map, &preactivation_map, shared, warp - 1);
      }
    }
  } else {
    ptx::registers_increase<kConsumerRegisters>();
    ptx::cluster_sync();
    Multiplier<C>{p, shared, warp / 4 - 1}.loop();
  }
  // A CTA's peer may still arrive at its barriers.
  __syncwarp();
  ptx::cluster_sync();
}

}  // namespace block_sparse::cuda::sm90::wide
