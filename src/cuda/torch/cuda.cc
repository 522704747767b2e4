// SPDX-License-Identifier: Apache-2.0
//
// The operators on CUDA, a library beside the main one, which defines the
// schemas and must be loaded first.
#include "block_sparse/cuda.h"

#include <tuple>

#include "cuda/torch/backend.h"
#include "torch/operators.h"

namespace block_sparse::torch_ops {
namespace {

Tensor ints(const Tensor& like, std::int64_t length) {
  return empty(like, &length, 1, ScalarType::Int);
}

std::int32_t* data_of(const Tensor& tensor) {
  return static_cast<std::int32_t*>(tensor.mutable_data_ptr());
}

/// The sentence about a pattern that the device found wrong, from a copy.
[[noreturn]] void fail_as_the_host_does(PatternView pattern, cuda::Stream stream) {
  const auto copied = [stream](const std::int32_t* from, std::int64_t length) {
    std::vector<std::int32_t> host(static_cast<std::size_t>(length));
    check_cuda(cudaMemcpyAsync(host.data(), from, host.size() * sizeof(std::int32_t),
                               cudaMemcpyDeviceToHost, stream));
    return host;
  };
  const auto crow = copied(pattern.crow_indices, pattern.n_block_rows() + 1);
  const auto col = copied(pattern.col_indices, pattern.slots);
  const auto ids = copied(pattern.block_ids, pattern.slots);
  check_cuda(cudaStreamSynchronize(stream));
  pattern.crow_indices = crow.data();
  pattern.col_indices = col.data();
  pattern.block_ids = ids.data();
  check(validate(pattern));
  fail("the index was written to while it was checked; expected it to stay as it is");
}

/// Runs when a pattern changes. One int is waited for, the answer.
void pattern_check(const Tensor& crow, const Tensor& col, const Tensor& ids, std::int64_t slots,
                   std::int64_t block_cols) {
  const CudaBackend backend(crow, {{&col, "col_indices"}, {&ids, "block_ids"}}, nullptr, false);
  const PatternView pattern = pattern_of_blocks(crow, col, ids, slots, block_cols);
  const Tensor scratch = ints(crow, cuda::check_pattern_scratch(pattern));
  check(cuda::check_pattern(pattern, data_of(scratch), backend.stream()));
  std::int32_t fault = 0;
  check_cuda(cudaMemcpyAsync(&fault, data_of(scratch), sizeof(fault), cudaMemcpyDeviceToHost,
                             backend.stream()));
  check_cuda(cudaStreamSynchronize(backend.stream()));
  if (fault != 0) fail_as_the_host_does(pattern, backend.stream());
}

std::tuple<Tensor, Tensor, Tensor> pattern_transpose(const Tensor& crow, const Tensor& col,
                                                     const Tensor& ids, std::int64_t block_cols) {
  const CudaBackend backend(crow, {{&col, "col_indices"}, {&ids, "block_ids"}}, nullptr, false);
  const PatternView pattern = pattern_of_blocks(crow, col, ids, col.numel(), block_cols);
  const Tensor ccol = ints(crow, block_cols + 1);
  const Tensor rows = ints(crow, pattern.slots);
  const Tensor t_ids = ints(crow, pattern.slots);
  const Tensor scratch = ints(crow, cuda::transpose_pattern_scratch(pattern));
  check(cuda::transpose_pattern(pattern, data_of(ccol), data_of(rows), data_of(t_ids),
                                data_of(scratch), backend.stream()));
  return {ccol, rows, t_ids};
}

Tensor pattern_plan(const std::vector<Tensor>& index, std::int64_t out_features,
                    std::int64_t in_features, std::int64_t block_height, std::int64_t block_width) {
  if (index.size() <= col_indices) fail("index has ", index.size(), " tensors; expected 7");
  const CudaBackend backend(index[0], {}, &index, false);
  if (out_features < 0) fail("out_features is ", out_features, "; expected at least 0");
  if (in_features < 0) fail("in_features is ", in_features, "; expected at least 0");
  const PatternView pattern = pattern_from(index, out_features, in_features, block_height,
                                           block_width, index[col_indices].numel());
  const Tensor tables = ints(index[0], cuda::plan_size(pattern));
  check(cuda::build_plan(pattern, data_of(tables), backend.stream()));
  return tables;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(block_sparse, CUDA, m) {
  Operators<CudaBackend>::register_products(m);
  m.impl("pattern_check", TORCH_BOX(&pattern_check));
  m.impl("pattern_transpose", TORCH_BOX(&pattern_transpose));
  m.impl("pattern_plan", TORCH_BOX(&pattern_plan));
}

}  // namespace block_sparse::torch_ops
