// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/ptx/launch.cuh"
#include "cuda/sm90/wide/find.cuh"
#include "cuda/sm90/wide/load.cuh"
#include "cuda/sm90/wide/multiply.cuh"

namespace block_sparse::cuda::sm90::wide {

/// yᵀ = W xᵀ: a warp that walks over the index, one that loads, two that store and two
/// consumer warpgroups a CTA, persistent over tiles of 128 outputs x Tokens tokens; two CTAs
/// with the same outputs form a cluster and share each block of W they load.
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
    for (int s = 0; s < kSteps; ++s) {
      ptx::barrier_init(&shared.found[s], C::kTileLines);
      ptx::barrier_init(&shared.passed[s], C::kBlocks);
    }
    for (int c = 0; c < kConsumers; ++c) {
      for (int part = 0; part < 2; ++part) {
        ptx::barrier_init(&shared.ordered[c][part], 4);
        ptx::barrier_init(&shared.stored[c][part], 1);
      }
    }
    ptx::fence_barrier_init();
  }
  // Nothing of memory was touched so far, neither the index, which the kernels before may
  // have written, nor what they read.
  ptx::wait_for_kernels_before();
  ptx::allow_next_kernel();
  ptx::cluster_sync();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (warp < 4) {
    ptx::registers_decrease<kProducerRegisters>();
    if (warp == 0) {
      Loader<C>{p, &x_map, &w_map, shared}.run();
    } else if (warp == 1) {
      find_loop<C>(p, shared);
    } else if (threadIdx.x % 32 == 0) {
      store_loop<C>(p, &y_map, &preactivation_map, shared, warp - 2);
    }
  } else {
    ptx::registers_increase<kConsumerRegisters>();
    Multiplier<C>{p, shared, warp / 4 - 1}.loop();
  }
  // A CTA's peer may still arrive at its barriers.
  __syncwarp();
  ptx::cluster_sync();
}

}  // namespace block_sparse::cuda::sm90::wide
