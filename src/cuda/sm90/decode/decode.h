// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/generic/generic.h"

/// Both SpMM products of up to 64 tokens for bf16 and f16 and blocks with sides that are
/// multiples of 64, on Hopper: TMA and wgmma, K cut over a cluster where outputs are few.
namespace block_sparse::cuda::sm90::decode {

/// Why `run` cannot take this problem, or null.
const char* refusal(const generic::SpmmProblem& problem);
Status run(const generic::SpmmProblem& problem, Stream stream);

}  // namespace block_sparse::cuda::sm90::decode
