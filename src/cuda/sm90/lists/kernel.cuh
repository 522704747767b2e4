// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/sm90/lists/load.cuh"
#include "cuda/sm90/lists/multiply.cuh"

namespace block_sparse::cuda::sm90::lists {

/// y = x Wᵀ: tokens are M, outputs N. Persistent over tiles of 128 tokens x 384
/// outputs: one warp loads x, one reads the index, one puts it in the order of the
/// products, one loads blocks, and three warpgroups multiply.
template <class C>
__global__ void __cluster_dims__(C::kCluster, 1, 1) __launch_bounds__(kThreads, 1)
    kernel(const Params p, const __grid_constant__ CUtensorMap x_map) {
  extern __shared__ unsigned char raw[];
  // Dynamic shared memory is only 16-byte aligned; swizzled tiles need 1024.
  auto& shared =
      *reinterpret_cast<Shared<C>*>(raw + (1024 - ptx::shared_address(raw) % 1024) % 1024);
  if (threadIdx.x == 0) {
    for (int i = 0; i < kMaxStages; ++i) {
      ptx::barrier_init(&shared.x_full[i], 1);
      // One arrival a consumer warp of every CTA that the stage was read with.
      ptx::barrier_init(&shared.x_empty[i], kConsumers * 4 * C::kCluster);
    }
    for (int i = 0; i < kBatches; ++i) {
      ptx::barrier_init(&shared.full[i], 1 + 32);  // the list, and each lane's copies
      ptx::barrier_init(&shared.empty[i], kConsumers * 4);
      ptx::barrier_init(&shared.listed[i], 1);
      ptx::barrier_init(&shared.listed_empty[i], 1);
    }
    for (int i = 0; i < 2; ++i) {
      ptx::barrier_init(&shared.window_full[i], 1);
      ptx::barrier_init(&shared.window_empty[i], 1);
    }
    ptx::fence_barrier_init();
  }
  ptx::cluster_sync();

  if (threadIdx.x < 128) {
    ptx::registers_decrease<kProducerRegisters>();
    const int warp = static_cast<int>(threadIdx.x) / 32;
    if (warp == 0) {
      if (threadIdx.x == 0) load_x<C>(p, &x_map, shared);
    } else if (warp == 1) {
      Reader<C>{p, shared}();
    } else if (warp == 2) {
      Lister<C>{p, shared}();
    } else {
      load_blocks<C>(p, shared);
    }
  } else {
    ptx::registers_increase<kConsumerRegisters>();
    multiply_loop<C>(p, shared);
  }
  // A CTA's peer may still arrive at its barriers.
  __syncwarp();
  ptx::cluster_sync();
}

}  // namespace block_sparse::cuda::sm90::lists
