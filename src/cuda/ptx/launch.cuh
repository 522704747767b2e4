// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Programmatic dependent launch: a kernel that is launched with the attribute
/// may start once all CTAs of the one before have allowed it or are done. Before Hopper,
/// which has no such launches, there is nothing to allow and nothing to wait for.
namespace block_sparse::cuda::ptx {

/// Allows the next kernel to start.
__device__ __forceinline__ void allow_next_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
/// Waits until the kernels before have finished and their writes can be seen.
__device__ __forceinline__ void wait_for_kernels_before() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace block_sparse::cuda::ptx
