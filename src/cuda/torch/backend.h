// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#include <optional>

#include "block_sparse/cuda.h"
#include "torch/operators.h"

namespace block_sparse::torch_ops {

void check_cuda(cudaError_t error);

/// One operator's device, stream, plan and scratch memory.
class CudaBackend {
 public:
  using ForwardArgs = cuda::ForwardArgs;
  using InputGradientArgs = cuda::InputGradientArgs;
  using WeightGradientArgs = cuda::WeightGradientArgs;
  using BlockNormsArgs = cuda::BlockNormsArgs;

  CudaBackend(const Tensor& reference, std::initializer_list<NamedTensor> others,
              const std::vector<Tensor>* index, bool allow_tf32);

  Status run(ForwardArgs& args) const;
  Status run(InputGradientArgs& args) const;
  Status run(WeightGradientArgs& args) const;
  Status run(BlockNormsArgs& args) const;

  Tensor sum_of_rows(const Rows& rows, ScalarType type) const;

  /// torch's current stream of the device.
  cuda::Stream stream() const { return stream_; }

 private:
  struct Device {
    std::int32_t type;
    std::int32_t index;
    bool operator==(const Device&) const = default;
  };
  static Device device_of(const Tensor& tensor);
  void check_device(const Tensor* tensor, const char* name) const;
  template <class Args>
  void set_common(Args& args) const;

  const Tensor& reference_;
  const std::vector<Tensor>* index_;
  bool allow_tf32_;
  Device device_;
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;  // if it was not current
  cuda::Stream stream_ = nullptr;
};

}  // namespace block_sparse::torch_ops
