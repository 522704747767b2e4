// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "block_sparse/products.h"

namespace block_sparse::cpu {

/// Everything a product relies on: extents, strides, pointers, data types and
/// an index that stays inside the operands. An error is one sentence.
Status validate(const ForwardArgs& args);
Status validate(const InputGradientArgs& args);
Status validate(const WeightGradientArgs& args);
Status validate(const BlockNormsArgs& args);

}  // namespace block_sparse::cpu
