// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <string>

#include "block_sparse/status.h"

namespace block_sparse::cuda {

/// What kernels are chosen by; asked once per device.
struct Device {
  int major = 0;  // compute capability
  int minor = 0;
  int multiprocessors = 0;
};

/// The current device, or the reason why there is none.
Status current_device(Device* device);

Status to_status(cudaError_t error, const char* doing);

/// Lets a kernel have `bytes` of dynamic shared memory, which without asking are at
/// most 48 KB.
template <class Kernel>
Status allow_shared_memory(Kernel* kernel, int bytes) {
  return to_status(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                        cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                   "raising the shared memory limit");
}

/// A row-major matrix (rows, cols) of 2-byte elements, row stride in elements,
/// as the copy engine sees it: boxes of (box_rows, box_cols) land in shared
/// memory row after row, swizzled over box_cols * 2 = 32, 64 or 128 bytes.
struct MatrixBox {
  const void* data;
  std::int64_t rows, cols, stride;
  int box_rows, box_cols;
  bool is_bf16;
};
Status make_tensor_map(const MatrixBox& box, CUtensorMap* map);

/// Why the copy engine cannot take such a matrix, or null.
const char* tensor_map_refusal(const void* data, std::int64_t stride_in_elements);

}  // namespace block_sparse::cuda
