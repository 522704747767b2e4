// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda.h>

#include "cuda/ptx/mbarrier.cuh"

/// The copy engine: boxes of matrices between global and shared memory.
namespace block_sparse::cuda::ptx {

/// Fetches a description of a matrix ahead of the first box.
__device__ __forceinline__ void prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/// Loads the box at (row, col); its bytes count down `barrier`. Outside the
/// matrix it reads zeros.
__device__ __forceinline__ void load_box(const CUtensorMap* map, std::uint32_t to,
                                         std::uint32_t barrier, int row, int col) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
      "l"(map), "r"(col), "r"(row), "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void load_box(const CUtensorMap* map, void* to, std::uint64_t* barrier,
                                         int row, int col) {
  load_box(map, shared_address(to), shared_address(barrier), row, col);
}

/// The same into every CTA of `mask` in the cluster, at the same place there.
__device__ __forceinline__ void load_box_multicast(const CUtensorMap* map, std::uint32_t to,
                                                   std::uint32_t barrier, int row, int col,
                                                   unsigned short mask) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(map), "r"(col), "r"(row), "r"(barrier), "h"(mask)
      : "memory");
}
__device__ __forceinline__ void load_box_multicast(const CUtensorMap* map, void* to,
                                                   std::uint64_t* barrier, int row, int col,
                                                   unsigned short mask) {
  load_box_multicast(map, shared_address(to), shared_address(barrier), row, col, mask);
}

/// Stores the box at (row, col); what lies outside of the matrix is left out. It is the
/// first that L2 gives up: at most sizes y does not fit there, and x does.
__device__ __forceinline__ void store_box(const CUtensorMap* map, const void* from, int row,
                                          int col) {
  asm volatile(
      "{\n"
      ".reg .b64 policy;\n"
      "createpolicy.fractional.L2::evict_first.b64 policy, 1.0;\n"
      "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group.L2::cache_hint"
      " [%0, {%1, %2}], [%3], policy;\n"
      "}" ::"l"(map),
      "r"(col), "r"(row), "r"(shared_address(from))
      : "memory");
}
__device__ __forceinline__ void store_commit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
/// Waits until shared memory may be written again that this thread's stores read.
__device__ __forceinline__ void store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}
/// Before the copy engine reads what this thread has written to shared memory.
__device__ __forceinline__ void fence_async_reads() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

}  // namespace block_sparse::cuda::ptx
