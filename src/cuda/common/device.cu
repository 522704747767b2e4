// SPDX-License-Identifier: Apache-2.0
#include "cuda/common/device.h"

#include <array>
#include <mutex>

namespace block_sparse::cuda {

Status to_status(cudaError_t error, const char* doing) {
  if (error == cudaSuccess) return {};
  const StatusCode code =
      error == cudaErrorMemoryAllocation ? StatusCode::out_of_memory : StatusCode::unsupported;
  return {code, std::string("CUDA error while ") + doing + ": " + cudaGetErrorString(error) + "."};
}

namespace {

/// Why there is no device, in words that say what to do about it.
Status no_device(cudaError_t error) {
  int driver = 0;
  if (error != cudaErrorInsufficientDriver || cudaDriverGetVersion(&driver) != cudaSuccess) {
    return to_status(error, "asking for the current device");
  }
  const auto spelled = [](int version) {
    return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
  };
  if (driver == 0) return Status::unsupported("No CUDA driver was found; use the CPU.");
  return Status::unsupported("The CUDA driver is made for CUDA " + spelled(driver) +
                             ", expected at least " + spelled(CUDART_VERSION) +
                             "; update the driver, or use the CPU.");
}

}  // namespace

Status current_device(Device* device) {
  static constexpr int kMaxDevices = 64;
  static std::mutex mutex;
  static std::array<Device, kMaxDevices> known;

  int index = 0;
  if (const cudaError_t error = cudaGetDevice(&index); error != cudaSuccess) {
    return no_device(error);
  }
  if (index >= kMaxDevices) return Status::unsupported("More than 64 CUDA devices.");
  const std::scoped_lock lock(mutex);
  Device& entry = known[static_cast<std::size_t>(index)];
  if (entry.multiprocessors == 0) {
    Device fresh;
    cudaError_t error =
        cudaDeviceGetAttribute(&fresh.major, cudaDevAttrComputeCapabilityMajor, index);
    if (error == cudaSuccess) {
      error = cudaDeviceGetAttribute(&fresh.minor, cudaDevAttrComputeCapabilityMinor, index);
    }
    if (error == cudaSuccess) {
      error = cudaDeviceGetAttribute(&fresh.multiprocessors, cudaDevAttrMultiProcessorCount, index);
    }
    if (Status s = to_status(error, "reading device attributes"); !s.ok()) return s;
    entry = fresh;
  }
  *device = entry;
  return {};
}

namespace {

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

EncodeTiled encode_tiled() {
  static const EncodeTiled function = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found{};
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry,
                                                               12000, cudaEnableDefault, &found);
    return error == cudaSuccess && found == cudaDriverEntryPointSuccess
               ? reinterpret_cast<EncodeTiled>(entry)
               : nullptr;
  }();
  return function;
}

}  // namespace

const char* tensor_map_refusal(const void* data, std::int64_t stride_in_elements) {
  if (reinterpret_cast<std::uintptr_t>(data) % 16 != 0) return "a matrix is not 16-byte aligned";
  if (stride_in_elements % 8 != 0) return "a row stride is not a multiple of 16 bytes";
  if (stride_in_elements * 2 >= (std::int64_t{1} << 40)) return "a row stride is too long";
  return nullptr;
}

Status make_tensor_map(const MatrixBox& box, CUtensorMap* map) {
  const EncodeTiled encode = encode_tiled();
  if (encode == nullptr) {
    return Status::unsupported("The CUDA driver has no cuTensorMapEncodeTiled; update it.");
  }
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(box.cols),
                               static_cast<cuuint64_t>(box.rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(box.stride) * 2};
  const cuuint32_t box_sizes[2] = {static_cast<cuuint32_t>(box.box_cols),
                                   static_cast<cuuint32_t>(box.box_rows)};
  const cuuint32_t element_strides[2] = {1, 1};
  const CUtensorMapSwizzle swizzle = box.box_cols == 64   ? CU_TENSOR_MAP_SWIZZLE_128B
                                     : box.box_cols == 32 ? CU_TENSOR_MAP_SWIZZLE_64B
                                                          : CU_TENSOR_MAP_SWIZZLE_32B;
  const CUresult result =
      encode(map, box.is_bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
             2, const_cast<void*>(box.data), sizes, strides, box_sizes, element_strides,
             CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    return Status::unsupported("cuTensorMapEncodeTiled refused a matrix of " +
                               std::to_string(box.rows) + " x " + std::to_string(box.cols) +
                               ", row stride " + std::to_string(box.stride) + " (code " +
                               std::to_string(static_cast<int>(result)) + ").");
  }
  return {};
}

}  // namespace block_sparse::cuda
