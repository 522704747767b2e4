// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "cuda/generic/generic.h"

/// Forward and input gradient for bf16, f16, f32 and TF32 and blocks with sides of
/// 16, 32, 64 or 128, on every GPU since Ampere.
namespace block_sparse::cuda::sm80::spmm {

/// Why `run` cannot take this problem, or null.
const char* refusal(const generic::SpmmProblem& problem);
Status run(const generic::SpmmProblem& problem, Stream stream);

/// How a problem is cut up.
struct Choice {
  enum class Math { mma16, tf32, ffma } math;
  int lines;  // of blocks that a CTA works on together, 1 or kLinesTogether
};
constexpr int kLinesTogether = 8;
Choice choose(const generic::SpmmProblem& problem);
std::string to_string(const Choice& choice);

/// The instantiations, a source per kind of arithmetic.
Status run_bf16(const generic::SpmmProblem& problem, const Choice& choice, Stream stream);
Status run_f16(const generic::SpmmProblem& problem, const Choice& choice, Stream stream);
Status run_tf32(const generic::SpmmProblem& problem, const Choice& choice, Stream stream);
Status run_ffma(const generic::SpmmProblem& problem, const Choice& choice, Stream stream);

}  // namespace block_sparse::cuda::sm80::spmm
