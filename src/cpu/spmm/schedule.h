// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "block_sparse/executor.h"
#include "block_sparse/products.h"
#include "cpu/spmm/spmm.h"

namespace block_sparse::cpu::spmm {

/// How a product is cut for several threads: into token_parts x (boundaries of
/// lines - 1) pieces, tokens outermost.
struct Plan {
  std::int64_t token_parts = 1;
  std::vector<std::int64_t> line_bounds;
  double cost = 0;  // estimated cycles of the slowest thread, per element of a block

  std::int64_t line_parts() const { return static_cast<std::int64_t>(line_bounds.size()) - 1; }
};

/// The cut with the least estimated time on `threads` threads. W is packed for every `panel`
/// tokens.
Plan plan(const Operands& operands, std::int64_t tokens, std::int64_t panel, const Costs& costs,
          int threads);

/// All but A.
Operands operands_of(const ForwardArgs& args);
Operands operands_of(const InputGradientArgs& args);

Status forward(const ForwardArgs& args, const Kernels& kernels, const Executor& executor);
Status forward(const ForwardArgs& args, const PairsKernels& kernels, const Executor& executor);
Status input_gradient(const InputGradientArgs& args, const Kernels& kernels,
                      const Executor& executor);
Status input_gradient(const InputGradientArgs& args, const PairsKernels& kernels,
                      const Executor& executor);

/// The same as the kernel table calls them.
template <const auto& kernels>
Status forward(const ForwardArgs& args, const Executor& executor) {
  return forward(args, kernels, executor);
}
template <const auto& kernels>
Status input_gradient(const InputGradientArgs& args, const Executor& executor) {
  return input_gradient(args, kernels, executor);
}

}  // namespace block_sparse::cpu::spmm
