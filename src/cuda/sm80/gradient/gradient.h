// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "block_sparse/cuda.h"

/// Products dyᵀ x over the tokens for blocks with sides of 16, 32, 64 or 128, on
/// every GPU since Ampere: the weight gradient of f32 and TF32, and the norms of
/// all blocks of the dense gradient for every type but f64.
namespace block_sparse::cuda::sm80::gradient {

/// Why `run` cannot take these arguments, or null.
const char* refusal(const WeightGradientArgs& args);
Status run(const WeightGradientArgs& args, Stream stream);
/// Bytes with which it is fastest.
std::size_t workspace(const WeightGradientArgs& args);

const char* refusal(const BlockNormsArgs& args);
Status run(const BlockNormsArgs& args, Stream stream);

}  // namespace block_sparse::cuda::sm80::gradient
