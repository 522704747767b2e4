// SPDX-License-Identifier: Apache-2.0
//
// The operators on the CPU. The dispatcher calls these only when no tensor
// argument lives elsewhere, so devices are not checked again.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>

#include "arguments.h"
#include "executor.h"
#include "operators.h"

namespace block_sparse::torch_ops {

namespace {

const TorchExecutor executor;

/// Nothing to set up: the dispatcher has seen to the devices.
struct CpuBackend {
  using ForwardArgs = cpu::ForwardArgs;
  using InputGradientArgs = cpu::InputGradientArgs;
  using WeightGradientArgs = cpu::WeightGradientArgs;
  using BlockNormsArgs = cpu::BlockNormsArgs;

  CpuBackend(const Tensor&, std::initializer_list<NamedTensor>, const std::vector<Tensor>*,
             bool /*allow_tf32*/) {}

  Status run(const ForwardArgs& args) const { return cpu::forward(args, executor); }
  Status run(const InputGradientArgs& args) const { return cpu::input_gradient(args, executor); }
  Status run(const WeightGradientArgs& args) const { return cpu::weight_gradient(args, executor); }
  Status run(const BlockNormsArgs& args) const { return cpu::block_norms(args, executor); }

  Tensor sum_of_rows(const Rows& rows, ScalarType type) const {
    // Entering torch's kernel takes 3 µs.
    const bool is_float = type == ScalarType::Float && rows.tensor.scalar_type() == type;
    if (!is_float || rows.tokens * rows.features > kFewElements) {
      return torch_ops::sum_of_rows(rows, type);
    }
    const Tensor sum = empty(rows.tensor, &rows.features, 1, type);
    auto* to = static_cast<float*>(sum.mutable_data_ptr());
    std::fill_n(to, rows.features, 0.0F);
    for (std::int64_t token = 0; token < rows.tokens; ++token) {
      const float* from = static_cast<const float*>(rows.data) + token * rows.stride;
      for (std::int64_t i = 0; i < rows.features; ++i) to[i] += from[i];
    }
    return sum;
  }

 private:
  static constexpr std::int64_t kFewElements = 4096;
};

void pattern_check(const Tensor& crow, const Tensor& col, const Tensor& ids, std::int64_t slots,
                   std::int64_t block_cols) {
  check(validate(pattern_of_blocks(crow, col, ids, slots, block_cols)));
}

std::tuple<Tensor, Tensor, Tensor> pattern_transpose(const Tensor& crow, const Tensor& col,
                                                     const Tensor& ids, std::int64_t block_cols) {
  const std::int64_t slots = col.numel();
  const PatternView pattern = pattern_of_blocks(crow, col, ids, slots, block_cols);
  check(check_bounds(pattern));
  const auto zeros = [&](std::int64_t length) {
    Tensor tensor = empty(crow, &length, 1, ScalarType::Int);
    return torch::stable::zero_(tensor);
  };
  const Tensor ccol = zeros(block_cols + 1);
  const Tensor rows = zeros(slots);
  const Tensor t_ids = zeros(slots);
  const auto data = [](const Tensor& tensor) {
    return static_cast<std::int32_t*>(tensor.mutable_data_ptr());
  };
  transpose(pattern, data(ccol), data(rows), data(t_ids));
  return {ccol, rows, t_ids};
}

/// The CPU kernels need no tables.
Tensor pattern_plan(const std::vector<Tensor>& index, std::int64_t, std::int64_t, std::int64_t,
                    std::int64_t) {
  if (index.empty()) fail("index has no tensor; expected 7");
  const std::int64_t length = 0;
  return empty(index[0], &length, 1, ScalarType::Int);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(block_sparse, CPU, m) {
  Operators<CpuBackend>::register_products(m);
  m.impl("pattern_check", TORCH_BOX(&pattern_check));
  m.impl("pattern_transpose", TORCH_BOX(&pattern_transpose));
  m.impl("pattern_plan", TORCH_BOX(&pattern_plan));
}

}  // namespace block_sparse::torch_ops
