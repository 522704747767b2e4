// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/generic/generic.h"

/// Both SpMM products for bf16 and f16 on Hopper, TMA and wgmma: blocks with sides of 64 and
/// more, and lower ones of which few are stored.
namespace block_sparse::cuda::sm90::wide {

/// Why `run` cannot take this problem, or null.
const char* refusal(const generic::SpmmProblem& problem);
Status run(const generic::SpmmProblem& problem, Stream stream);

}  // namespace block_sparse::cuda::sm90::wide
