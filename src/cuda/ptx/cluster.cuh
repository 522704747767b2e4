// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

/// The CTAs of a cluster and their shared memory. Before Hopper each CTA is alone.
namespace block_sparse::cuda::ptx {

__device__ __forceinline__ unsigned cluster_size() {
#if __CUDA_ARCH__ >= 900
  unsigned size;
  asm("mov.u32 %0, %%cluster_nctaid.x;" : "=r"(size));
  return size;
#else
  return 1;
#endif
}

/// All threads of the cluster arrive and wait in turn: what one wrote before it arrived can be
/// read by the others after they waited.
__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

/// Writes to where CTA `rank` of the cluster has what this one has at `address`.
__device__ __forceinline__ void store_cluster_x4(std::uint32_t address, unsigned rank,
                                                 const float4& v) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "st.shared::cluster.v4.f32 [remote], {%2, %3, %4, %5};\n"
      "}" ::"r"(address),
      "r"(rank), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w)
      : "memory");
#endif
}

}  // namespace block_sparse::cuda::ptx
