// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "block_sparse/cuda.h"

/// The weight gradient for bf16 and f16 on Hopper; sides of blocks are multiples
/// of 16.
namespace block_sparse::cuda::sm90::cells {

/// Why `run` cannot take these arguments, or null.
const char* refusal(const WeightGradientArgs& args);
Status run(const WeightGradientArgs& args, Stream stream);
/// Bytes with which it is fastest.
std::size_t workspace(const WeightGradientArgs& args);

}  // namespace block_sparse::cuda::sm90::cells
