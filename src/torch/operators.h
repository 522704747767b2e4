// SPDX-License-Identifier: Apache-2.0
//
// The operators over a backend: checks, views and new tensors around one call.
#pragma once

#include <torch/csrc/stable/library.h>

#include <initializer_list>
#include <tuple>

#include "arguments.h"

namespace block_sparse::torch_ops {

struct BlockShape {
  std::int64_t slots;
  std::int64_t height;
  std::int64_t width;
};

/// Sizes of contiguous (slots, block height, block width).
inline BlockShape block_shape_of(const Tensor& values, const char* name) {
  if (values.dim() != 3) {
    fail(name, " has shape ", shape_of(values), "; expected (slots, block_height, block_width)");
  }
  if (!values.is_contiguous()) fail(name, " is not contiguous; call contiguous() on it first");
  return {values.size(0), values.size(1), values.size(2)};
}

inline void check_same_tokens(const Rows& grad, const Rows& x) {
  if (grad.tokens != x.tokens) {
    fail("grad has shape ", shape_of(grad.tensor), " and x ", shape_of(x.tensor),
         "; expected as many rows in both");
  }
}

/// A tensor argument and its name; null where an optional one is missing.
struct NamedTensor {
  const Tensor* tensor;
  const char* name;
};

/// `Backend` has the argument structs of products.h and
/// - a constructor (reference tensor, other tensors, index or null, allow_tf32),
///   alive during one operator, that checks what the backend needs of devices;
/// - `Status run(Args&) const` for each struct,
/// - `Tensor sum_of_rows(const Rows&, ScalarType) const`, the sum over all tokens in a dtype.
template <class Backend>
struct Operators {
  /// y, and x Wᵀ + bias if `with_preactivation`.
  static std::pair<Tensor, std::optional<Tensor>> forward_with(
      const Tensor& x, const Tensor& values, const std::vector<Tensor>& index,
      const std::optional<Tensor>& bias, std::int64_t out_features, std::string_view activation,
      bool allow_tf32, bool with_preactivation) {
    const Backend backend(x, {{&values, "values"}, {bias ? &*bias : nullptr, "bias"}}, &index,
                          allow_tf32);
    typename Backend::ForwardArgs args;
    args.dtype = data_type_of(x, "x");
    args.activation = activation_from(activation);
    if (out_features < 0) fail("out_features is ", out_features, "; expected at least 0");
    check_same_dtype(values, "values", args.dtype, "x");
    const Rows rows(x, "x");
    const BlockShape block = block_shape_of(values, "values");
    args.pattern =
        pattern_from(index, out_features, rows.features, block.height, block.width, block.slots);
    std::optional<Tensor> bias_kept;
    if (bias) {
      check_same_dtype(*bias, "bias", args.dtype, "x");
      if (bias->dim() != 1 || bias->numel() != out_features) {
        fail("bias has shape ", shape_of(*bias), "; expected (", out_features, ",)");
      }
      bias_kept = bias->is_contiguous() ? *bias : torch::stable::contiguous(*bias);
      args.bias = bias_kept->const_data_ptr();
    }
    const Tensor y = empty_rows(x, out_features);
    std::optional<Tensor> preactivation;
    if (with_preactivation) {
      preactivation = empty_rows(x, out_features);
      args.preactivation = preactivation->mutable_data_ptr();
    }
    args.tokens = rows.tokens;
    args.x = rows.data;
    args.ldx = rows.stride;
    args.values = values.const_data_ptr();
    args.y = y.mutable_data_ptr();
    args.ldy = out_features;
    check(backend.run(args));
    return {y, preactivation};
  }

  static Tensor linear(const Tensor& x, const Tensor& values, const std::vector<Tensor>& index,
                       const std::optional<Tensor>& bias, std::int64_t out_features,
                       std::string_view activation, bool allow_tf32) {
    return forward_with(x, values, index, bias, out_features, activation, allow_tf32, false).first;
  }

  static Tensor linear_packed(const Tensor& x, const Tensor& values, const Tensor& packed_index,
                              const std::optional<Tensor>& bias, std::int64_t out_features,
                              std::string_view activation, bool allow_tf32) {
    return linear(x, values, {packed_index}, bias, out_features, activation, allow_tf32);
  }

  static std::tuple<Tensor, Tensor> linear_preactivation(const Tensor& x, const Tensor& values,
                                                         const std::vector<Tensor>& index,
                                                         const std::optional<Tensor>& bias,
                                                         std::int64_t out_features,
                                                         std::string_view activation,
                                                         bool allow_tf32) {
    const auto [y, preactivation] =
        forward_with(x, values, index, bias, out_features, activation, allow_tf32, true);
    return {y, *preactivation};
  }

  static Tensor input_gradient(const Backend& backend, const Rows& grad, DataType dtype,
                               const PatternView& pattern, const Tensor& values) {
    typename Backend::InputGradientArgs args;
    args.dtype = dtype;
    args.pattern = pattern;
    const Tensor dx = empty_rows(grad.tensor, pattern.cols);
    args.tokens = grad.tokens;
    args.dy = grad.data;
    args.lddy = grad.stride;
    args.values = values.const_data_ptr();
    args.dx = dx.mutable_data_ptr();
    args.lddx = pattern.cols;
    check(backend.run(args));
    return dx;
  }

  static Tensor linear_input_grad(const Tensor& grad, const Tensor& values,
                                  const std::vector<Tensor>& index, std::int64_t in_features,
                                  bool allow_tf32) {
    const Backend backend(grad, {{&values, "values"}}, &index, allow_tf32);
    const DataType dtype = data_type_of(grad, "grad");
    check_same_dtype(values, "values", dtype, "grad");
    if (in_features < 0) fail("in_features is ", in_features, "; expected at least 0");
    const Rows rows(grad, "grad");
    const BlockShape block = block_shape_of(values, "values");
    return input_gradient(
        backend, rows, dtype,
        pattern_from(index, rows.features, in_features, block.height, block.width, block.slots),
        values);
  }

  static void weight_gradient_into(const Backend& backend, const Tensor& dvalues,
                                   DataType out_dtype, bool accumulate, const Rows& grad,
                                   const Rows& x, DataType dtype, const PatternView& pattern) {
    typename Backend::WeightGradientArgs args;
    args.dtype = dtype;
    args.out_dtype = out_dtype;
    args.pattern = pattern;
    args.tokens = x.tokens;
    args.dy = grad.data;
    args.lddy = grad.stride;
    args.x = x.data;
    args.ldx = x.stride;
    args.accumulate = accumulate;
    args.dvalues = dvalues.mutable_data_ptr();
    check(backend.run(args));
  }

  static void weight_gradient_into(const Tensor& dvalues, DataType out_dtype, bool accumulate,
                                   const Tensor& grad, const Tensor& x,
                                   const std::vector<Tensor>& index, const BlockShape& block,
                                   bool allow_tf32) {
    const Backend backend(grad, {{&x, "x"}, {&dvalues, "accumulator"}}, &index, allow_tf32);
    const DataType dtype = data_type_of(grad, "grad");
    check_same_dtype(x, "x", dtype, "grad");
    const Rows grad_rows(grad, "grad");
    const Rows x_rows(x, "x");
    check_same_tokens(grad_rows, x_rows);
    weight_gradient_into(backend, dvalues, out_dtype, accumulate, grad_rows, x_rows, dtype,
                         pattern_from(index, grad_rows.features, x_rows.features, block.height,
                                      block.width, block.slots));
  }

  static Tensor linear_weight_grad(const Tensor& grad, const Tensor& x,
                                   const std::vector<Tensor>& index, std::int64_t slots,
                                   std::int64_t block_height, std::int64_t block_width,
                                   std::optional<ScalarType> out_dtype, bool allow_tf32) {
    if (slots < 0) fail("slots is ", slots, "; expected at least 0");
    check_block_shape(block_height, block_width);
    const ScalarType type = out_dtype.value_or(grad.scalar_type());
    const std::int64_t shape[] = {slots, block_height, block_width};
    const Tensor dvalues = empty(grad, shape, 3, type);
    weight_gradient_into(dvalues, data_type_of(dvalues, "out_dtype"), false, grad, x, index,
                         {slots, block_height, block_width}, allow_tf32);
    return dvalues;
  }

  /// The gradients of linear without an activation in one call: of x if `input`, of the values,
  /// and of the bias if `bias`; what is not asked for is undefined.
  static std::tuple<Tensor, Tensor, Tensor> linear_backward(
      const Tensor& grad, const Tensor& x, const Tensor& values, const std::vector<Tensor>& index,
      bool input, bool bias, std::optional<ScalarType> out_dtype, bool allow_tf32) {
    const Backend backend(grad, {{&x, "x"}, {&values, "values"}}, &index, allow_tf32);
    const DataType dtype = data_type_of(grad, "grad");
    check_same_dtype(x, "x", dtype, "grad");
    const Rows grad_rows(grad, "grad");
    const Rows x_rows(x, "x");
    check_same_tokens(grad_rows, x_rows);
    const BlockShape block = block_shape_of(values, "values");
    const PatternView pattern = pattern_from(index, grad_rows.features, x_rows.features,
                                             block.height, block.width, block.slots);
    const ScalarType out_type = out_dtype.value_or(grad.scalar_type());
    const std::int64_t shape[] = {block.slots, block.height, block.width};
    Tensor dx = undefined();
    if (input) {
      check_same_dtype(values, "values", dtype, "grad");
      dx = input_gradient(backend, grad_rows, dtype, pattern, values);
    }
    const Tensor dvalues = empty(grad, shape, 3, out_type);
    weight_gradient_into(backend, dvalues, data_type_of(dvalues, "out_dtype"), false, grad_rows,
                         x_rows, dtype, pattern);
    return {dx, dvalues, bias ? backend.sum_of_rows(grad_rows, out_type) : undefined()};
  }

  static std::tuple<Tensor, Tensor, Tensor> linear_backward_packed(
      const Tensor& grad, const Tensor& x, const Tensor& values, const Tensor& packed_index,
      bool input, bool bias, bool allow_tf32) {
    return linear_backward(grad, x, values, {packed_index}, input, bias, std::nullopt, allow_tf32);
  }

  static void linear_weight_grad_accumulate(const Tensor& accumulator, const Tensor& grad,
                                            const Tensor& x, const std::vector<Tensor>& index,
                                            bool allow_tf32) {
    const BlockShape block = block_shape_of(accumulator, "accumulator");
    weight_gradient_into(accumulator, data_type_of(accumulator, "accumulator"), true, grad, x,
                         index, block, allow_tf32);
  }

  static Tensor block_norms(const Tensor& grad, const Tensor& x, std::int64_t block_height,
                            std::int64_t block_width, bool allow_tf32) {
    const Backend backend(grad, {{&x, "x"}}, nullptr, allow_tf32);
    typename Backend::BlockNormsArgs args;
    args.dtype = data_type_of(grad, "grad");
    check_same_dtype(x, "x", args.dtype, "grad");
    const Rows grad_rows(grad, "grad");
    const Rows x_rows(x, "x");
    check_same_tokens(grad_rows, x_rows);
    check_block_shape(block_height, block_width);
    args.pattern.rows = grad_rows.features;
    args.pattern.cols = x_rows.features;
    args.pattern.block_height = block_height;
    args.pattern.block_width = block_width;
    const std::int64_t shape[] = {args.pattern.n_block_rows(), args.pattern.n_block_cols()};
    const Tensor norms =
        empty(grad, shape, 2, args.dtype == DataType::f64 ? ScalarType::Double : ScalarType::Float);
    args.tokens = x_rows.tokens;
    args.dy = grad_rows.data;
    args.lddy = grad_rows.stride;
    args.x = x_rows.data;
    args.ldx = x_rows.stride;
    args.norms = norms.mutable_data_ptr();
    check(backend.run(args));
    return norms;
  }

  /// Registers the products; `m` is the library object of a dispatch key.
  template <class Library>
  static void register_products(Library& m) {
    m.impl("linear", TORCH_BOX(&linear));
    m.impl("linear_preactivation", TORCH_BOX(&linear_preactivation));
    m.impl("linear_input_grad", TORCH_BOX(&linear_input_grad));
    m.impl("linear_weight_grad", TORCH_BOX(&linear_weight_grad));
    m.impl("linear_weight_grad_accumulate_", TORCH_BOX(&linear_weight_grad_accumulate));
    m.impl("linear_backward", TORCH_BOX(&linear_backward));
    m.impl("_linear", TORCH_BOX(&linear_packed));
    m.impl("_linear_backward", TORCH_BOX(&linear_backward_packed));
    m.impl("block_norms", TORCH_BOX(&block_norms));
  }
};

}  // namespace block_sparse::torch_ops
