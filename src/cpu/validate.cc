// SPDX-License-Identifier: Apache-2.0
#include "cpu/validate.h"

#include <cstdint>
#include <limits>
#include <string>

#include "common/checked.h"

namespace block_sparse::cpu {
namespace {

Status wrong(const char* argument, const std::string& got, const std::string& expected) {
  return Status::invalid_argument(std::string(argument) + " is " + got + ", expected " + expected);
}

Status check_type(const char* argument, DataType type) {
  switch (type) {
    case DataType::f32:
    case DataType::f64:
    case DataType::bf16:
    case DataType::f16:
      return {};
  }
  return wrong(argument, "the unknown data type " + std::to_string(static_cast<int>(type)),
               "f32, f64, bf16 or f16");
}

/// (tokens, features) with a row stride of `ld` elements.
Status check_matrix(const char* name, const char* ld_name, const void* data, DataType type,
                    std::int64_t tokens, std::int64_t features, std::int64_t ld) {
  if (tokens == 0 || features == 0) return {};
  if (data == nullptr) return wrong(name, "null", "a pointer to the matrix");
  if (tokens == 1) return {};  // no second row, so its stride means nothing
  if (ld < features) {
    return wrong(ld_name, std::to_string(ld),
                 "a row stride of at least " + std::to_string(features) + " elements");
  }
  if (!checked_product({tokens, ld, static_cast<std::int64_t>(size_of(type))})) {
    return wrong(ld_name, std::to_string(ld), "a matrix smaller than 2^63 bytes");
  }
  return {};
}

Status check_tokens(std::int64_t tokens) {
  if (tokens >= 0) return {};
  return wrong("tokens", std::to_string(tokens), "at least 0");
}

/// The extents alone: block_norms reads no index.
Status check_shape(const PatternView& pattern) {
  constexpr std::int64_t limit = std::numeric_limits<std::int32_t>::max();
  const struct {
    const char* argument;
    std::int64_t value;
    std::int64_t minimum;
  } extents[] = {{"rows", pattern.rows, 0},
                 {"cols", pattern.cols, 0},
                 {"block_height", pattern.block_height, 1},
                 {"block_width", pattern.block_width, 1}};
  for (const auto& extent : extents) {
    if (extent.value < extent.minimum || extent.value > limit) {
      return wrong(extent.argument, std::to_string(extent.value),
                   "from " + std::to_string(extent.minimum) + " to " + std::to_string(limit));
    }
  }
  return {};
}

/// dy (tokens, rows) and x (tokens, cols) of the two products that reduce over
/// the tokens.
template <class Args>
Status check_gradients(const Args& args) {
  if (Status status = check_matrix("dy", "lddy", args.dy, args.dtype, args.tokens,
                                   args.pattern.rows, args.lddy);
      !status.ok()) {
    return status;
  }
  return check_matrix("x", "ldx", args.x, args.dtype, args.tokens, args.pattern.cols, args.ldx);
}

Status check_activation(Activation activation) {
  switch (activation) {
    case Activation::none:
    case Activation::relu:
    case Activation::gelu:
    case Activation::gelu_tanh:
    case Activation::silu:
      return {};
  }
  return wrong("activation", "the unknown value " + std::to_string(static_cast<int>(activation)),
               "none, relu, gelu, gelu_tanh or silu");
}

}  // namespace

Status validate(const ForwardArgs& args) {
  const PatternView& pattern = args.pattern;
  if (Status status = check_type("dtype", args.dtype); !status.ok()) return status;
  if (Status status = check_tokens(args.tokens); !status.ok()) return status;
  if (Status status = check_bounds(pattern); !status.ok()) return status;
  if (Status status =
          check_matrix("x", "ldx", args.x, args.dtype, args.tokens, pattern.cols, args.ldx);
      !status.ok()) {
    return status;
  }
  if (Status status =
          check_matrix("y", "ldy", args.y, args.dtype, args.tokens, pattern.rows, args.ldy);
      !status.ok()) {
    return status;
  }
  if (args.values == nullptr && args.tokens > 0 && pattern.n_blocks() > 0) {
    return wrong("values", "null", "a pointer to the stored blocks");
  }
  return check_activation(args.activation);
}

Status validate(const InputGradientArgs& args) {
  const PatternView& pattern = args.pattern;
  if (Status status = check_type("dtype", args.dtype); !status.ok()) return status;
  if (Status status = check_tokens(args.tokens); !status.ok()) return status;
  if (Status status = check_transpose_bounds(pattern); !status.ok()) return status;
  if (Status status =
          check_matrix("dy", "lddy", args.dy, args.dtype, args.tokens, pattern.rows, args.lddy);
      !status.ok()) {
    return status;
  }
  if (Status status =
          check_matrix("dx", "lddx", args.dx, args.dtype, args.tokens, pattern.cols, args.lddx);
      !status.ok()) {
    return status;
  }
  const bool any_block = pattern.ccol_indices[pattern.n_block_cols()] > 0;
  if (args.values == nullptr && args.tokens > 0 && any_block) {
    return wrong("values", "null", "a pointer to the stored blocks");
  }
  return {};
}

Status validate(const WeightGradientArgs& args) {
  const PatternView& pattern = args.pattern;
  if (Status status = check_type("dtype", args.dtype); !status.ok()) return status;
  if (Status status = check_type("out_dtype", args.out_dtype); !status.ok()) return status;
  const bool widened = args.out_dtype == DataType::f32 && size_of(args.dtype) == 2;
  if (args.out_dtype != args.dtype && !widened) {
    return wrong("out_dtype",
                 std::string(name_of(args.out_dtype)) + " with dtype " + name_of(args.dtype),
                 "dtype itself, or f32 with a 16-bit dtype");
  }
  if (Status status = check_tokens(args.tokens); !status.ok()) return status;
  if (Status status = check_bounds(pattern); !status.ok()) return status;
  if (Status status = check_gradients(args); !status.ok()) return status;
  if (args.dvalues == nullptr && pattern.slots > 0) {
    return wrong("dvalues", "null", "a pointer to the gradient of the stored blocks");
  }
  return {};
}

Status validate(const BlockNormsArgs& args) {
  const PatternView& pattern = args.pattern;
  if (Status status = check_type("dtype", args.dtype); !status.ok()) return status;
  if (Status status = check_tokens(args.tokens); !status.ok()) return status;
  if (Status status = check_shape(pattern); !status.ok()) return status;
  if (Status status = check_gradients(args); !status.ok()) return status;
  if (args.norms == nullptr && pattern.rows > 0 && pattern.cols > 0) {
    return wrong("norms", "null", "a pointer to block rows x block columns norms");
  }
  return {};
}

}  // namespace block_sparse::cpu
