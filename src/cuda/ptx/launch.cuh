// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Programmatic dependent launch: a kernel that is launched with the attribute
/// may start once all CTAs of the one before have allowed it or are done.
namespace block_sparse::cuda::ptx {

/// Allows the next kernel to start.
__device__ __forceinline__ void allow_next_kernel() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}
/// Waits until the kernels before have finished and their writes can be seen.
__device__ __forceinline__ void wait_for_kernels_before() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

}  // namespace block_sparse::cuda::ptx
