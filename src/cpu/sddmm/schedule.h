// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "block_sparse/executor.h"
#include "block_sparse/products.h"
#include "cpu/sddmm/sddmm.h"

namespace block_sparse::cpu::sddmm {

template <const Kernels& kernels>
Status weight_gradient(const WeightGradientArgs& args, const Executor& executor);
template <const Kernels& kernels>
Status block_norms(const BlockNormsArgs& args, const Executor& executor);

}  // namespace block_sparse::cpu::sddmm
