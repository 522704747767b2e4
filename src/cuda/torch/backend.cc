// SPDX-License-Identifier: Apache-2.0
#include "cuda/torch/backend.h"

#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include "cuda/common/sums.h"

namespace block_sparse::torch_ops {
namespace {

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

}  // namespace

void check_cuda(cudaError_t error) {
  if (error != cudaSuccess) fail("CUDA error: ", cudaGetErrorString(error));
}

CudaBackend::Device CudaBackend::device_of(const Tensor& tensor) {
  Device device{};
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &device.type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor.get(), &device.index));
  return device;
}

CudaBackend::CudaBackend(const Tensor& reference, std::initializer_list<NamedTensor> others,
                         const std::vector<Tensor>* index, bool allow_tf32)
    : reference_(reference), index_(index), allow_tf32_(allow_tf32), device_(device_of(reference)) {
  // The dispatcher comes here as soon as one tensor is on a GPU.
  if (device_.type != aoti_torch_device_type_cuda()) {
    fail("the first tensor is on the CPU and another on a GPU; expected all on one device");
  }
  int current = -1;
  check_cuda(cudaGetDevice(&current));
  if (current != device_.index) guard_.emplace(device_.index);
  for (const NamedTensor& other : others) check_device(other.tensor, other.name);
  if (index != nullptr) {
    for (const Tensor& part : *index) check_device(&part, "a tensor of index");
  }
  stream_ = current_stream(device_.index);
}

void CudaBackend::check_device(const Tensor* tensor, const char* name) const {
  if (tensor == nullptr || device_of(*tensor) == device_) return;
  fail(name, " is on another device than the first tensor; expected all on one");
}

template <class Args>
void CudaBackend::set_common(Args& args) const {
  args.allow_tf32 = allow_tf32_;
  // A plan of another length is empty, or of another version or device (an
  // exported program brings its own): products do without.
  args.plan = plan_from(*index_, args.pattern, cuda::plan_size(args.pattern));
}

Status CudaBackend::run(ForwardArgs& args) const {
  set_common(args);
  return cuda::forward(args, stream_);
}

Status CudaBackend::run(InputGradientArgs& args) const {
  set_common(args);
  return cuda::input_gradient(args, stream_);
}

Status CudaBackend::run(WeightGradientArgs& args) const {
  set_common(args);
  const auto bytes = static_cast<std::int64_t>(cuda::weight_gradient_workspace(args));
  if (bytes == 0) return cuda::weight_gradient(args, stream_);
  // Freed to torch's allocator at the end, which hands it out on this stream
  // again only after the work enqueued here.
  const Tensor workspace = empty(reference_, &bytes, 1, ScalarType::Byte);
  args.workspace = {workspace.mutable_data_ptr(), static_cast<std::size_t>(bytes)};
  return cuda::weight_gradient(args, stream_);
}

Status CudaBackend::run(BlockNormsArgs& args) const {
  args.allow_tf32 = allow_tf32_;
  return cuda::block_norms(args, stream_);
}

Tensor CudaBackend::sum_of_rows(const Rows& rows, ScalarType type) const {
  // Entering torch's kernel takes 10 µs of the host's time.
  const DataType from = data_type_of(rows.tensor, "grad");
  const bool is_64 = from == DataType::f64 || type == ScalarType::Double;
  if (is_64 || rows.tokens > cuda::kMaxSummedRows) return torch_ops::sum_of_rows(rows, type);
  const Tensor sum = empty(rows.tensor, &rows.features, 1, type);
  check(cuda::sum_of_rows(from, data_type_of(sum, "out_dtype"), rows.data, rows.stride, rows.tokens,
                          rows.features, sum.mutable_data_ptr(), stream_));
  return sum;
}

}  // namespace block_sparse::torch_ops
