// SPDX-License-Identifier: Apache-2.0
#include "block_sparse/types.h"

namespace block_sparse {

const char* name_of(DataType type) {
  switch (type) {
    case DataType::f32:
      return "float32";
    case DataType::f64:
      return "float64";
    case DataType::bf16:
      return "bfloat16";
    case DataType::f16:
      return "float16";
  }
  return "unknown";
}

const char* name_of(Activation activation) {
  switch (activation) {
    case Activation::none:
      return "none";
    case Activation::relu:
      return "relu";
    case Activation::gelu:
      return "gelu";
    case Activation::gelu_tanh:
      return "gelu_tanh";
    case Activation::silu:
      return "silu";
  }
  return "unknown";
}

}  // namespace block_sparse
