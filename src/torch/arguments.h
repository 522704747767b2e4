// SPDX-License-Identifier: Apache-2.0
//
// From torch tensors to the plain arguments of a backend: checks that end in
// one sentence, row strides, pattern views, new tensors.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "block_sparse/block_sparse.h"

namespace block_sparse::torch_ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

/// Throws what Python sees as a RuntimeError. Not STD_TORCH_CHECK, which puts
/// the path of this file in front of the sentence.
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream sentence;
  (sentence << ... << parts);
  throw std::runtime_error(sentence.str());
}

inline void check(const Status& status) {
  if (!status.ok()) fail(status.message());
}

/// "(2, 3, 64)".
std::string shape_of(const Tensor& tensor);

Activation activation_from(std::string_view name);
DataType data_type_of(const Tensor& tensor, const char* name);
ScalarType scalar_type_of(DataType type);

/// Refuses a tensor of another dtype than `type`, that of `reference`.
void check_same_dtype(const Tensor& tensor, const char* name, DataType type, const char* reference);

/// A tensor as rows with unit inner stride: (tokens, features), tokens the
/// product of all dimensions but the last. A view where one row stride reaches
/// every row (also h[:, 0] of a 3-d h), else a contiguous copy.
struct Rows {
  Rows(const Tensor& source, const char* name);

  Tensor tensor;  // keeps the copy, if any, alive
  std::int64_t tokens;
  std::int64_t features;
  std::int64_t stride;  // between rows, in elements
  const void* data;
};

/// Positions in `Tensor[] index`, unless that is a single tensor, which holds all of them one after
/// another, each at a multiple of `index_alignment`.
enum IndexPart : std::size_t {
  crow_indices,
  col_indices,
  block_ids,
  ccol_indices,
  row_indices,
  t_block_ids,
  plan,
  n_index_parts,
};

inline constexpr std::int64_t index_alignment = 32;  // 128 bytes

void check_block_shape(std::int64_t block_height, std::int64_t block_width);

/// The pattern of a (rows, cols) matrix; lengths and dtypes are checked, the
/// contents are not (check_bounds does that).
PatternView pattern_from(const std::vector<Tensor>& index, std::int64_t rows, std::int64_t cols,
                         std::int64_t block_height, std::int64_t block_width, std::int64_t slots);

/// The plan in an index whose other parts `pattern` has, or null if it is not of `length`.
const std::int32_t* plan_from(const std::vector<Tensor>& index, const PatternView& pattern,
                              std::int64_t length);

/// A matrix of 1x1 blocks: what the saved part of an index alone says.
PatternView pattern_of_blocks(const Tensor& crow, const Tensor& col, const Tensor& ids,
                              std::int64_t slots, std::int64_t block_cols);

/// The data of `tensor` after checking that it is int32, contiguous and 1-d of
/// `length` elements; `length` below 0 stands for any.
const std::int32_t* index_data(const Tensor& tensor, const char* name, std::int64_t length);

/// An uninitialised contiguous tensor on the device of `like`.
Tensor empty(const Tensor& like, const std::int64_t* sizes, std::int64_t dims, ScalarType type);

/// The same with the shape of `like`, its last dimension replaced.
Tensor empty_rows(const Tensor& like, std::int64_t features);

/// (features,): the sum over the tokens by torch's own kernel.
Tensor sum_of_rows(const Rows& rows, ScalarType type);

/// What Python sees as None.
Tensor undefined();

}  // namespace block_sparse::torch_ops
