// SPDX-License-Identifier: Apache-2.0
#include "cuda/sm80/spmm/launch.cuh"

namespace block_sparse::cuda::sm80::spmm {

Status run_bf16(const generic::SpmmProblem& p, const Choice& choice, Stream stream) {
  return launch_math<Mma16<bf16>, true>(p, choice, stream);
}

}  // namespace block_sparse::cuda::sm80::spmm
