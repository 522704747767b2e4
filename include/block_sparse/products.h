// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "block_sparse/executor.h"
#include "block_sparse/pattern.h"
#include "block_sparse/status.h"
#include "block_sparse/types.h"

/// The products of a block-sparse linear layer on the CPU. W is the (out, in)
/// matrix of the pattern, x (tokens, in), y and dy (tokens, out), all row-major
/// with unit inner stride and a row stride in elements (`ld…`). Every product
/// writes the whole of its result, also for empty block rows and tokens = 0.
/// Results do not depend on the number of threads. Pointers need the alignment
/// of their elements alone; a result must not overlap an operand. Calls may run
/// at the same time.
namespace block_sparse::cpu {

/// y = activation(x Wᵀ + bias); SpMM.
struct ForwardArgs {
  DataType dtype = DataType::f32;  // of x, values, bias, preactivation and y
  PatternView pattern;
  std::int64_t tokens = 0;
  const void* x = nullptr;
  std::int64_t ldx = 0;
  const void* values = nullptr;
  const void* bias = nullptr;  // (out), or null
  Activation activation = Activation::none;
  void* preactivation = nullptr;  // (tokens, out) like y, or null: x Wᵀ + bias
  void* y = nullptr;
  std::int64_t ldy = 0;  // of y and preactivation
};
Status forward(const ForwardArgs& args, const Executor& executor);

/// dx = dy W; SpMM with the transposed pattern, which must be given.
struct InputGradientArgs {
  DataType dtype = DataType::f32;  // of dy, values and dx
  PatternView pattern;
  std::int64_t tokens = 0;
  const void* dy = nullptr;
  std::int64_t lddy = 0;
  const void* values = nullptr;
  void* dx = nullptr;
  std::int64_t lddx = 0;
};
Status input_gradient(const InputGradientArgs& args, const Executor& executor);

/// dvalues[slot] = dy[:, block row]ᵀ x[:, block column] for each stored block;
/// SDDMM. Spare slots and padding become 0, or stay as they are when
/// accumulating.
struct WeightGradientArgs {
  DataType dtype = DataType::f32;      // of dy and x
  DataType out_dtype = DataType::f32;  // of dvalues: dtype, or f32 for 16-bit dtypes
  PatternView pattern;
  std::int64_t tokens = 0;
  const void* dy = nullptr;
  std::int64_t lddy = 0;
  const void* x = nullptr;
  std::int64_t ldx = 0;
  bool accumulate = false;
  void* dvalues = nullptr;  // (slots, block_height, block_width)
};
Status weight_gradient(const WeightGradientArgs& args, const Executor& executor);

/// norms[r, c] = Frobenius norm of block (r, c) of the dense gradient dyᵀ x,
/// stored or not, without ever holding that gradient. Only the extents and the
/// block shape of the pattern are read.
struct BlockNormsArgs {
  DataType dtype = DataType::f32;  // of dy and x
  PatternView pattern;
  std::int64_t tokens = 0;
  const void* dy = nullptr;
  std::int64_t lddy = 0;
  const void* x = nullptr;
  std::int64_t ldx = 0;
  void* norms = nullptr;  // (n_block_rows, n_block_cols), f32; f64 if dtype is
};
Status block_norms(const BlockNormsArgs& args, const Executor& executor);

}  // namespace block_sparse::cpu
