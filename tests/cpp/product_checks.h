// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <vector>

#include "support.h"

/// What any implementation of a product must satisfy, the reference and each
/// fast kernel alike.
namespace block_sparse::test {

struct BlockShape {
  std::int64_t height;
  std::int64_t width;
};

/// What the gaps between the rows of results are filled with.
constexpr double untouched = 12.0;

Matrix random_matrix(DataType type, std::int64_t rows, std::int64_t cols, Random& random);

cpu::ForwardArgs forward_args(const PatternArrays& pattern, const Matrix& x, const Matrix& values,
                              const Matrix* bias, Activation activation, Matrix* preactivation,
                              Matrix* y);
/// These have only the transposed arrays, of which the input gradient needs no more.
cpu::InputGradientArgs input_gradient_args(const PatternArrays& pattern, const Matrix& dy,
                                           const Matrix& values, Matrix* dx);
cpu::WeightGradientArgs weight_gradient_args(const PatternArrays& pattern, const Matrix& dy,
                                             const Matrix& x, bool accumulate, Matrix* dvalues);
/// These have no index at all.
cpu::BlockNormsArgs block_norms_args(const PatternArrays& pattern, const Matrix& dy,
                                     const Matrix& x, Matrix* norms);

/// (rows, cols) of exact sums against a matrix, gaps included.
void expect_close(const Matrix& actual, const std::vector<Exact>& expected, DataType type);

/// What a slot element must hold: the block of dyᵀ x plus what was there, or
/// what was there alone (a spare slot or padding).
struct Target {
  Exact exact;
  bool computed = false;
};
/// `dense` is exact_dense_gradient().
std::vector<Target> weight_gradient_targets(const PatternArrays& pattern,
                                            const std::vector<Exact>& dense, const Matrix& before,
                                            bool accumulate);

template <class Args>
using Product = std::function<Status(const Args&, const Executor&)>;

/// Whole and ragged edges, one block only, a matrix narrower than its block; no
/// block, some, all; each with these numbers of tokens. Rows have gaps, of the
/// operands filled with NaN; some slots are spare.
void check_forward(const Product<cpu::ForwardArgs>& product, DataType type, BlockShape block,
                   const std::vector<std::int64_t>& token_counts);
void check_input_gradient(const Product<cpu::InputGradientArgs>& product, DataType type,
                          BlockShape block, const std::vector<std::int64_t>& token_counts);
void check_weight_gradient(const Product<cpu::WeightGradientArgs>& product, DataType type,
                           BlockShape block, const std::vector<std::int64_t>& token_counts);
void check_block_norms(const Product<cpu::BlockNormsArgs>& product, DataType type, BlockShape block,
                       const std::vector<std::int64_t>& token_counts);
/// Each activation, with and without keeping what it was applied to.
void check_activations(const Product<cpu::ForwardArgs>& product, DataType type, const Shape& shape,
                       std::int64_t tokens);

}  // namespace block_sparse::test
