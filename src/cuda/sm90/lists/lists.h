// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/generic/generic.h"

/// Both SpMM products for bf16 and f16 and small blocks on Hopper: TMA and wgmma on
/// lists of the stored blocks.
namespace block_sparse::cuda::sm90::lists {

/// Why `run` cannot take this problem, or null.
const char* refusal(const generic::SpmmProblem& problem);
Status run(const generic::SpmmProblem& problem, Stream stream);

/// Stages of x in shared memory, 3 to 5; the blocks have the rest.
int stages_of(const generic::SpmmProblem& problem);

}  // namespace block_sparse::cuda::sm90::lists
