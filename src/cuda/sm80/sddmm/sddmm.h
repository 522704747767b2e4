// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "block_sparse/cuda.h"

/// The weight gradient for bf16 and f16 and blocks with sides of 16, 32, 64 or
/// 128, on every GPU since Ampere.
namespace block_sparse::cuda::sm80::sddmm {

/// Why `run` cannot take these arguments, or null.
const char* refusal(const WeightGradientArgs& args);
Status run(const WeightGradientArgs& args, Stream stream);
/// Bytes with which it is fastest.
std::size_t workspace(const WeightGradientArgs& args);

}  // namespace block_sparse::cuda::sm80::sddmm
