// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

namespace block_sparse {

/// Element types. 16-bit types are accumulated in f32.
enum class DataType : std::uint8_t { f32, f64, bf16, f16 };

/// Activation fused into the forward product, after the bias.
/// gelu is the exact (erf) form, gelu_tanh the tanh approximation.
enum class Activation : std::uint8_t { none, relu, gelu, gelu_tanh, silu };

constexpr std::size_t size_of(DataType type) {
  switch (type) {
    case DataType::f64:
      return 8;
    case DataType::f32:
      return 4;
    default:
      return 2;
  }
}

const char* name_of(DataType type);
const char* name_of(Activation activation);

}  // namespace block_sparse
