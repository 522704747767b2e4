// SPDX-License-Identifier: Apache-2.0
//
// The operators of the namespace block_sparse. Exported programs embed these
// schemas: they can gain arguments with defaults at their end, nothing else.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(block_sparse, m) {
  m.def(
      "linear(Tensor x, Tensor values, Tensor[] index, Tensor? bias, SymInt out_features, "
      "str activation=\"none\", bool allow_tf32=False) -> Tensor");
  m.def(
      "linear_preactivation(Tensor x, Tensor values, Tensor[] index, Tensor? bias, "
      "SymInt out_features, str activation, bool allow_tf32=False) -> (Tensor, Tensor)");
  m.def(
      "linear_input_grad(Tensor grad, Tensor values, Tensor[] index, SymInt in_features, "
      "bool allow_tf32=False) -> Tensor");
  m.def(
      "linear_weight_grad(Tensor grad, Tensor x, Tensor[] index, SymInt slots, "
      "SymInt block_height, SymInt block_width, ScalarType? out_dtype=None, "
      "bool allow_tf32=False) -> Tensor");
  m.def(
      "linear_weight_grad_accumulate_(Tensor(a!) accumulator, Tensor grad, Tensor x, "
      "Tensor[] index, bool allow_tf32=False) -> ()");
  m.def(
      "linear_backward(Tensor grad, Tensor x, Tensor values, Tensor[] index, bool input=True, "
      "bool bias=True, ScalarType? out_dtype=None, bool allow_tf32=False) -> "
      "(Tensor, Tensor, Tensor)");
  m.def(
      "_linear(Tensor x, Tensor values, Tensor packed_index, Tensor? bias, SymInt out_features, "
      "str activation=\"none\", bool allow_tf32=False) -> Tensor");
  m.def(
      "_linear_backward(Tensor grad, Tensor x, Tensor values, Tensor packed_index, bool input, "
      "bool bias, bool allow_tf32=False) -> (Tensor, Tensor, Tensor)");
  m.def(
      "block_norms(Tensor grad, Tensor x, SymInt block_height, SymInt block_width, "
      "bool allow_tf32=False) -> Tensor");
  m.def(
      "pattern_check(Tensor crow_indices, Tensor col_indices, Tensor block_ids, SymInt slots, "
      "SymInt block_cols) -> ()");
  m.def(
      "pattern_transpose(Tensor crow_indices, Tensor col_indices, Tensor block_ids, "
      "SymInt block_cols) -> (Tensor, Tensor, Tensor)");
  m.def(
      "pattern_plan(Tensor[] index, SymInt out_features, SymInt in_features, "
      "SymInt block_height, SymInt block_width) -> Tensor");
}
