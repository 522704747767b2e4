// SPDX-License-Identifier: Apache-2.0
//
// The operators on CUDA, a library beside the main one, which defines the
// schemas and must be loaded first.
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "block_sparse/cuda.h"
#include "torch/operators.h"

namespace block_sparse::torch_ops {

namespace {

std::pair<std::int32_t, std::int32_t> device_of(const Tensor& tensor) {
  std::int32_t type = 0;
  std::int32_t index = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor.get(), &index));
  return {type, index};
}

/// torch's current stream. The function lives in libtorch_cuda.so, which the
/// machine that builds this need not have; `import torch` has loaded it.
cuda::Stream current_stream(std::int32_t device) {
  using Getter = AOTITorchError (*)(std::int32_t, void**);
  static const auto getter = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library == nullptr
               ? nullptr
               : reinterpret_cast<Getter>(dlsym(library, "aoti_torch_get_current_cuda_stream"));
  }();
  if (getter == nullptr) fail("torch's CUDA library is not loaded; install a torch with CUDA");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(getter(device, &stream));
  return static_cast<cuda::Stream>(stream);
}

void check_cuda(cudaError_t error) {
  if (error != cudaSuccess) fail("CUDA error: ", cudaGetErrorString(error));
}

/// One operator's device, stream, plan and scratch memory.
class CudaBackend {
 public:
  using ForwardArgs = cuda::ForwardArgs;
  using InputGradientArgs = cuda::InputGradientArgs;
  using WeightGradientArgs = cuda::WeightGradientArgs;
  using BlockNormsArgs = cuda::BlockNormsArgs;

  CudaBackend(const Tensor& reference, std::initializer_list<NamedTensor> others,
              const std::vector<Tensor>* index, bool allow_tf32)
      : reference_(reference),
        index_(index),
        allow_tf32_(allow_tf32),
        device_(device_of(reference)),
        guard_(device_.second) {
    // The dispatcher comes here as soon as one tensor is on a GPU.
    if (device_.first != aoti_torch_device_type_cuda()) {
      fail("the first tensor is on the CPU and another on a GPU; expected all on one device");
    }
    for (const NamedTensor& other : others) check_device(other.tensor, other.name);
    if (index != nullptr) {
      for (const Tensor& part : *index) check_device(&part, "a tensor of index");
    }
    stream_ = current_stream(device_.second);
  }

  Status run(ForwardArgs& args) const {
    set_common(args);
    return cuda::forward(args, stream_);
  }
  Status run(InputGradientArgs& args) const {
    set_common(args);
    return cuda::input_gradient(args, stream_);
  }
  Status run(WeightGradientArgs& args) const {
    set_common(args);
    const auto bytes = static_cast<std::int64_t>(cuda::weight_gradient_workspace(args));
    if (bytes == 0) return cuda::weight_gradient(args, stream_);
    // Freed to torch's allocator at the end, which hands it out on this stream
    // again only after the work enqueued here.
    const Tensor workspace = empty(reference_, &bytes, 1, ScalarType::Byte);
    args.workspace = {workspace.mutable_data_ptr(), static_cast<std::size_t>(bytes)};
    return cuda::weight_gradient(args, stream_);
  }
  Status run(BlockNormsArgs& args) const { return cuda::block_norms(args, stream_); }

 private:
  void check_device(const Tensor* tensor, const char* name) const {
    if (tensor == nullptr || device_of(*tensor) == device_) return;
    fail(name, " is on another device than the first tensor; expected all on one");
  }

  template <class Args>
  void set_common(Args& args) const {
    args.allow_tf32 = allow_tf32_;
    const Tensor& tables = (*index_)[plan];
    if (tables.numel() == 0) return;
    args.plan = index_data(tables, "plan", cuda::plan_size(args.pattern));
  }

  const Tensor& reference_;
  const std::vector<Tensor>* index_;
  bool allow_tf32_;
  std::pair<std::int32_t, std::int32_t> device_;
  torch::stable::accelerator::DeviceGuard guard_;
  cuda::Stream stream_ = nullptr;
};

/// A pattern of 1x1 blocks copied to the host: what the arrays alone say.
struct HostPattern {
  std::vector<std::int32_t> crow, col, ids;
  PatternView view;

  HostPattern(const Tensor& crow_indices, const Tensor& col_indices, const Tensor& block_ids,
              std::int64_t slots, std::int64_t block_cols, cuda::Stream stream)
      : crow(copied(crow_indices, "crow_indices", -1, stream)),
        col(copied(col_indices, "col_indices", slots, stream)),
        ids(copied(block_ids, "block_ids", slots, stream)) {
    if (crow.empty()) fail("crow_indices is empty; expected one entry per block row and one more");
    if (block_cols < 0) fail("block_cols is ", block_cols, "; expected at least 0");
    check_cuda(cudaStreamSynchronize(stream));
    view.rows = static_cast<std::int64_t>(crow.size()) - 1;
    view.cols = block_cols;
    view.slots = slots;
    view.crow_indices = crow.data();
    view.col_indices = col.data();
    view.block_ids = ids.data();
  }

 private:
  static std::vector<std::int32_t> copied(const Tensor& tensor, const char* name,
                                          std::int64_t length, cuda::Stream stream) {
    if (length < -1) fail("slots is ", length, "; expected at least 0");
    const std::int32_t* data = index_data(tensor, name, length);
    std::vector<std::int32_t> host(static_cast<std::size_t>(tensor.numel()));
    check_cuda(cudaMemcpyAsync(host.data(), data, host.size() * sizeof(std::int32_t),
                               cudaMemcpyDeviceToHost, stream));
    return host;
  }
};

/// These run when a pattern changes and answer on the host, so they wait.
void pattern_check(const Tensor& crow, const Tensor& col, const Tensor& ids, std::int64_t slots,
                   std::int64_t block_cols) {
  if (slots < 0) fail("slots is ", slots, "; expected at least 0");
  const CudaBackend backend(crow, {{&col, "col_indices"}, {&ids, "block_ids"}}, nullptr, false);
  check(validate(
      HostPattern(crow, col, ids, slots, block_cols, current_stream(device_of(crow).second)).view));
}

std::tuple<Tensor, Tensor, Tensor> pattern_transpose(const Tensor& crow, const Tensor& col,
                                                     const Tensor& ids, std::int64_t block_cols) {
  const CudaBackend backend(crow, {{&col, "col_indices"}, {&ids, "block_ids"}}, nullptr, false);
  const cuda::Stream stream = current_stream(device_of(crow).second);
  const std::int64_t slots = col.numel();
  const HostPattern host(crow, col, ids, slots, block_cols, stream);
  check(check_bounds(host.view));
  std::vector<std::int32_t> ccol(static_cast<std::size_t>(block_cols) + 1);
  std::vector<std::int32_t> rows(static_cast<std::size_t>(slots));
  std::vector<std::int32_t> t_ids(rows.size());
  transpose(host.view, ccol.data(), rows.data(), t_ids.data());
  const auto uploaded = [&](const std::vector<std::int32_t>& values) {
    const auto length = static_cast<std::int64_t>(values.size());
    const Tensor tensor = empty(crow, &length, 1, ScalarType::Int);
    check_cuda(cudaMemcpyAsync(tensor.mutable_data_ptr(), values.data(),
                               values.size() * sizeof(std::int32_t), cudaMemcpyHostToDevice,
                               stream));
    return tensor;
  };
  std::tuple<Tensor, Tensor, Tensor> result{uploaded(ccol), uploaded(rows), uploaded(t_ids)};
  check_cuda(cudaStreamSynchronize(stream));
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(block_sparse, CUDA, m) {
  Operators<CudaBackend>::register_products(m);
  m.impl("pattern_check", TORCH_BOX(&pattern_check));
  m.impl("pattern_transpose", TORCH_BOX(&pattern_transpose));
}

}  // namespace block_sparse::torch_ops
