// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/sm90/spmm/load.cuh"
#include "cuda/sm90/spmm/multiply.cuh"

namespace block_sparse::cuda::sm90::spmm {

/// yᵀ = W xᵀ: four producer warps and two consumer warpgroups a CTA, persistent
/// over tiles of 128 outputs x Tokens tokens; two CTAs with the same outputs
/// form a cluster and share each block of W they load.
template <class C>
__global__ void __cluster_dims__(kCluster, 1, 1) __launch_bounds__(kThreads, 1)
    kernel(const Params p, const __grid_constant__ CUtensorMap x_map,
           const __grid_constant__ CUtensorMap w_map) {
  extern __shared__ unsigned char raw[];
  // Dynamic shared memory is only 16-byte aligned; swizzled tiles need 1024.
  auto& shared =
      *reinterpret_cast<Shared<C>*>(raw + (1024 - ptx::shared_address(raw) % 1024) % 1024);
  if (threadIdx.x == 0) {
    for (int s = 0; s < C::kStages; ++s) {
      ptx::barrier_init(&shared.full[s], C::kBoxes);
      // One arrival a consumer warp of every CTA that the stage was read with.
      ptx::barrier_init(&shared.empty[s], kConsumers * 4 * kCluster);
    }
    ptx::fence_barrier_init();
  }
  ptx::cluster_sync();

  if (threadIdx.x < 128) {
    ptx::registers_decrease<kProducerRegisters>();
    load_loop<C>(p, &x_map, &w_map, shared);
  } else {
    ptx::registers_increase<kConsumerRegisters>();
    multiply_loop<C>(p, shared);
  }
  // A CTA's peer may still arrive at its barriers.
  __syncwarp();
  ptx::cluster_sync();
}

}  // namespace block_sparse::cuda::sm90::spmm
