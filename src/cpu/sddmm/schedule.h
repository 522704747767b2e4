// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "block_sparse/executor.h"
#include "block_sparse/products.h"
#include "cpu/sddmm/sddmm.h"

namespace block_sparse::cpu::sddmm {

Status weight_gradient(const WeightGradientArgs& args, const Kernels& kernels,
                       const Executor& executor);
Status block_norms(const BlockNormsArgs& args, const Kernels& kernels, const Executor& executor);

/// The same as the kernel table calls them.
template <const Kernels& kernels>
Status weight_gradient(const WeightGradientArgs& args, const Executor& executor) {
  return weight_gradient(args, kernels, executor);
}
template <const Kernels& kernels>
Status block_norms(const BlockNormsArgs& args, const Executor& executor) {
  return block_norms(args, kernels, executor);
}

}  // namespace block_sparse::cpu::sddmm
