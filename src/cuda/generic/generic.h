// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

#include "block_sparse/cuda.h"
#include "cuda/plan.h"

/// Plain kernels for every element type, block shape, extent and stride: what
/// runs when no faster kernel accepts a call, and what the others are held
/// against.
namespace block_sparse::cuda::generic {

/// y[t, line * height + m] = sum over the blocks of the line of
/// block[m, k] x[t, other * width + k]; both SpMM products.
struct SpmmProblem {
  DataType dtype;
  bool allow_tf32;
  Lines lines;
  std::int64_t height, width;  // of a block, across and along K
  std::int64_t out, in;        // features of y and of x
  std::int64_t slots;
  std::int64_t stride_m, stride_k;  // within a block of `values`
  std::int64_t tokens;
  const void* x;
  std::int64_t ldx;
  const void* values;
  const void* bias;
  Activation activation;
  void* preactivation;
  void* y;
  std::int64_t ldy;
};
/// The density if every slot holds a block; how many do, only the device knows.
inline double density_bound(const SpmmProblem& p) {
  return static_cast<double>(p.slots) * static_cast<double>(p.height * p.width) /
         std::max(static_cast<double>(p.out) * static_cast<double>(p.in), 1.0);
}
SpmmProblem problem_of(const ForwardArgs& args);
SpmmProblem problem_of(const InputGradientArgs& args);

Status spmm(const SpmmProblem& problem, Stream stream);
Status weight_gradient(const WeightGradientArgs& args, Stream stream);
Status block_norms(const BlockNormsArgs& args, Stream stream);

}  // namespace block_sparse::cuda::generic
