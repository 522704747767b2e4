// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "block_sparse/pattern.h"
#include "block_sparse/status.h"
#include "block_sparse/types.h"

struct CUstream_st;

/// The products of a block-sparse linear layer on an NVIDIA GPU, with the same
/// meaning as those of products.h. All pointers, the index of the pattern
/// included, are device pointers of the current device. Calls only enqueue work
/// on `stream`: they neither allocate nor wait, so they can be captured in a
/// CUDA graph. The number of blocks is read on the device from the last row
/// pointer; the pattern may change in place between replays (rebuild `plan`
/// then). The same inputs give the same bits.
///
/// The index must be valid (`validate`): it cannot be checked here without
/// waiting for the device.
namespace block_sparse::cuda {

using Stream = CUstream_st*;

/// Scratch memory, owned by the caller; `…_workspace` says how many bytes. It
/// may be reused by the next call on the same stream. 256-byte aligned.
struct Workspace {
  void* data = nullptr;
  std::size_t bytes = 0;
};

/// y = activation(x Wᵀ + bias).
struct ForwardArgs {
  DataType dtype = DataType::f32;  // of x, values, bias, preactivation and y
  bool allow_tf32 = false;         // f32 only: round x and values to TF32
  PatternView pattern;
  const std::int32_t* plan = nullptr;  // of build_plan, or null
  std::int64_t tokens = 0;
  const void* x = nullptr;
  std::int64_t ldx = 0;
  const void* values = nullptr;
  const void* bias = nullptr;  // (out), or null
  Activation activation = Activation::none;
  void* preactivation = nullptr;  // (tokens, out) like y, or null
  void* y = nullptr;
  std::int64_t ldy = 0;  // of y and preactivation
};
Status forward(const ForwardArgs& args, Stream stream);

/// dx = dy W; the transposed arrays of the pattern must be given.
struct InputGradientArgs {
  DataType dtype = DataType::f32;  // of dy, values and dx
  bool allow_tf32 = false;
  PatternView pattern;
  const std::int32_t* plan = nullptr;
  std::int64_t tokens = 0;
  const void* dy = nullptr;
  std::int64_t lddy = 0;
  const void* values = nullptr;
  void* dx = nullptr;
  std::int64_t lddx = 0;
};
Status input_gradient(const InputGradientArgs& args, Stream stream);

/// dvalues[slot] = dy[:, block row]ᵀ x[:, block column] for each stored block.
/// Spare slots and padding become 0, or stay as they are when accumulating.
struct WeightGradientArgs {
  DataType dtype = DataType::f32;      // of dy and x
  DataType out_dtype = DataType::f32;  // of dvalues: dtype, or f32 for 16-bit dtypes
  bool allow_tf32 = false;
  PatternView pattern;
  const std::int32_t* plan = nullptr;
  std::int64_t tokens = 0;
  const void* dy = nullptr;
  std::int64_t lddy = 0;
  const void* x = nullptr;
  std::int64_t ldx = 0;
  bool accumulate = false;
  void* dvalues = nullptr;  // (slots, block_height, block_width)
  Workspace workspace;      // without one, slower where tokens would be split
};
Status weight_gradient(const WeightGradientArgs& args, Stream stream);
/// Bytes of workspace with which weight_gradient is fastest on the current device.
std::size_t weight_gradient_workspace(const WeightGradientArgs& args);

/// norms[r, c] = Frobenius norm of block (r, c) of dyᵀ x, stored or not.
struct BlockNormsArgs {
  DataType dtype = DataType::f32;  // of dy and x
  bool allow_tf32 = false;
  PatternView pattern;  // only extents and block shape are read
  std::int64_t tokens = 0;
  const void* dy = nullptr;
  std::int64_t lddy = 0;
  const void* x = nullptr;
  std::int64_t ldx = 0;
  void* norms = nullptr;  // (n_block_rows, n_block_cols), f32; f64 if dtype is
};
Status block_norms(const BlockNormsArgs& args, Stream stream);

/// A plan holds what kernels derive from a pattern ahead of the calls, such as
/// an order of work in which all multiprocessors finish together. It is an aid:
/// every product runs without one. How many int32 elements it has follows from
/// the extents of the pattern alone, so it can be rebuilt in place.
std::int64_t plan_size(const PatternView& pattern);
/// Fills `plan` on the device. To be called when the pattern has changed; the
/// transposed arrays must be up to date.
Status build_plan(const PatternView& pattern, std::int32_t* plan, Stream stream);

/// What `validate` checks, on the device: scratch[0] becomes 0 if the pattern is
/// valid, else another number (`validate` on a copy says what is wrong). No
/// content is trusted.
Status check_pattern(const PatternView& pattern, std::int32_t* scratch, Stream stream);
std::int64_t check_pattern_scratch(const PatternView& pattern);  // int32 elements

/// Fills the transposed arrays of a valid pattern on the device: ccol_indices
/// (n_block_cols() + 1), row_indices and t_block_ids (slots each, 0 beyond the
/// stored blocks). Within a column, rows ascend.
Status transpose_pattern(const PatternView& pattern, std::int32_t* ccol_indices,
                         std::int32_t* row_indices, std::int32_t* t_block_ids,
                         std::int32_t* scratch, Stream stream);
std::int64_t transpose_pattern_scratch(const PatternView& pattern);  // int32 elements

/// Name of the kernel that a call would run on the current device, or the
/// reason why none does. The environment variable BLOCK_SPARSE_FORCE=<name>
/// overrides the choice, BLOCK_SPARSE_VERBOSE=dispatch prints each one.
std::string kernel_of(const ForwardArgs& args);
std::string kernel_of(const InputGradientArgs& args);
std::string kernel_of(const WeightGradientArgs& args);
std::string kernel_of(const BlockNormsArgs& args);

}  // namespace block_sparse::cuda
