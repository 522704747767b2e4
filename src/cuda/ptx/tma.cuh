// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda.h>

#include "cuda/ptx/mbarrier.cuh"

/// The copy engine: boxes of matrices between global and shared memory.
namespace block_sparse::cuda::ptx {

/// Loads the box at (row, col); its bytes count down `barrier`. Outside the
/// matrix it reads zeros.
__device__ __forceinline__ void load_box(const CUtensorMap* map, void* to, std::uint64_t* barrier,
                                         int row, int col) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%2, %3}], [%4];" ::"r"(shared_address(to)),
      "l"(map), "r"(col), "r"(row), "r"(shared_address(barrier))
      : "memory");
}

/// The same into every CTA of `mask` in the cluster, at the same place there.
__device__ __forceinline__ void load_box_multicast(const CUtensorMap* map, void* to,
                                                   std::uint64_t* barrier, int row, int col,
                                                   unsigned short mask) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(shared_address(to)),
      "l"(map), "r"(col), "r"(row), "r"(shared_address(barrier)), "h"(mask)
      : "memory");
}

}  // namespace block_sparse::cuda::ptx
