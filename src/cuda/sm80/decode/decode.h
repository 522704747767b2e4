// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/generic/generic.h"

/// Forward and input gradient of up to 64 tokens for bf16 and f16 and blocks
/// with sides of 16, 32, 64 or 128, on every GPU since Ampere.
namespace block_sparse::cuda::sm80::decode {

/// Why `run` cannot take this problem, or null.
const char* refusal(const generic::SpmmProblem& problem);
Status run(const generic::SpmmProblem& problem, Stream stream);

}  // namespace block_sparse::cuda::sm80::decode
