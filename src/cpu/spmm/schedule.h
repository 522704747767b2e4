// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "block_sparse/executor.h"
#include "block_sparse/products.h"
#include "cpu/spmm/spmm.h"

namespace block_sparse::cpu::spmm {

/// How a product is cut for several threads, which take one piece after another: each part of the
/// lines, those with most blocks first, for each part of the tokens.
struct Plan {
  std::int64_t token_parts = 1;
  std::vector<Range> line_parts;
  double cost = 0;  // estimated time of all threads together, in uses of an element of each block

  std::int64_t pieces() const { return token_parts * static_cast<std::int64_t>(line_parts.size()); }
  Range lines_of(std::int64_t piece) const {
    return line_parts[static_cast<std::size_t>(piece / token_parts)];
  }
  std::int64_t token_part_of(std::int64_t piece) const { return piece % token_parts; }
};

/// The cut with the least estimated time on `threads` threads.
Plan plan(const Operands& operands, std::int64_t tokens, const Costs& costs, int threads);

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
