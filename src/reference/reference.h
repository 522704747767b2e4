// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "block_sparse/products.h"

/// The products for every block shape and type: the oracle that faster kernels
/// are tested against, and what runs where none of them fits.
///
/// Arguments are taken as valid: products.h's functions check them first. A
/// status other than ok means that there was no memory for scratch: the
/// activations of a panel of tokens and, for 16-bit types, the stored blocks,
/// both in the accumulation type.
namespace block_sparse::reference {

Status forward(const cpu::ForwardArgs& args, const Executor& executor);
Status input_gradient(const cpu::InputGradientArgs& args, const Executor& executor);
Status weight_gradient(const cpu::WeightGradientArgs& args, const Executor& executor);
Status block_norms(const cpu::BlockNormsArgs& args, const Executor& executor);

}  // namespace block_sparse::reference
