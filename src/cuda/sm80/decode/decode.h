// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/generic/generic.h"

/// Forward and input gradient of up to 64 tokens for blocks with sides of 16, 32,
/// 64 or 128, on every GPU since Ampere: bf16, f16 and TF32 on tensor cores, f32 without.
namespace block_sparse::cuda::sm80::decode {

/// Why `run` cannot take this problem, or null.
const char* refusal(const generic::SpmmProblem& problem);
Status run(const generic::SpmmProblem& problem, Stream stream);
/// What `run` does with more than 32 tokens, and with any number of TF32.
Status run_many(const generic::SpmmProblem& problem, Stream stream);

const char* refusal_f32(const generic::SpmmProblem& problem);
Status run_f32(const generic::SpmmProblem& problem, Stream stream);

/// What both ask of tokens, extents, strides and alignment.
const char* layout_refusal(const generic::SpmmProblem& problem);

}  // namespace block_sparse::cuda::sm80::decode
