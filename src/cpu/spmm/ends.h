// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "cpu/simd/activation.h"
#include "cpu/simd/elements.h"
#include "cpu/simd/packing.h"
#include "cpu/spmm/spmm.h"

/// What all kernels need around the sums that they form.
namespace block_sparse::cpu::spmm {
namespace {

/// Walks over the reduced features of a line in chunks.
struct Cursor {
  std::int64_t block;
  std::int64_t offset;  // features of it that are done
};

constexpr std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
constexpr std::int64_t larger(std::int64_t a, std::int64_t b) { return a > b ? a : b; }

/// bias[output] to bias[output + valid] as floats, zeros behind up to `width`, a
/// multiple of 16.
template <class V, class T>
void load_bias(const Operands& op, std::int64_t output, std::int64_t valid, std::int64_t width,
               float* start) {
  if (op.bias != nullptr) {
    pack_rows<V>(static_cast<const T*>(op.bias) + output, 0, 1, valid, width, start);
  } else {
    for (std::int64_t o = 0; o < width; o += V::lanes) V::store(start + o, V::zero());
  }
}

template <class V, class T, Activation activation>
void finish_with(const Operands& op, Range tokens, std::int64_t output, std::int64_t valid,
                 const float* sums, std::int64_t ld) {
  T* const y = static_cast<T*>(op.y) + tokens.begin * op.ldy + output;
  T* kept = nullptr;
  if (op.preactivation != nullptr) {
    kept = static_cast<T*>(op.preactivation) + tokens.begin * op.ldy + output;
  }
  // Sums of f32 may have been formed where they belong.
  const void* const formed = sums;
  if (formed == kept) kept = nullptr;
  if (formed == y && activation == Activation::none) return;
  for (std::int64_t t = 0; t < tokens.end - tokens.begin; ++t) {
    const float* from = sums + t * ld;
    std::int64_t o = 0;
    for (; o + V::lanes <= valid; o += V::lanes) {
      const typename V::Float sum = V::load(from + o);
      if (kept != nullptr) V::store(kept + t * op.ldy + o, sum);
      V::store(y + t * op.ldy + o, activate<V, activation>(sum));
    }
    if (o < valid) {
      const int rest = static_cast<int>(valid - o);
      const typename V::Float sum = V::load_part(from + o, rest);
      if (kept != nullptr) V::store_part(kept + t * op.ldy + o, sum, rest);
      V::store_part(y + t * op.ldy + o, activate<V, activation>(sum), rest);
    }
  }
}

/// Sums (tokens, valid), `ld` apart, to y and preactivation from `output` on.
template <class V, class T>
void finish(const Operands& op, Range tokens, std::int64_t output, std::int64_t valid,
            const float* sums, std::int64_t ld) {
  switch (op.activation) {
    case Activation::none:
      return finish_with<V, T, Activation::none>(op, tokens, output, valid, sums, ld);
    case Activation::relu:
      return finish_with<V, T, Activation::relu>(op, tokens, output, valid, sums, ld);
    case Activation::gelu:
      return finish_with<V, T, Activation::gelu>(op, tokens, output, valid, sums, ld);
    case Activation::gelu_tanh:
      return finish_with<V, T, Activation::gelu_tanh>(op, tokens, output, valid, sums, ld);
    case Activation::silu:
      return finish_with<V, T, Activation::silu>(op, tokens, output, valid, sums, ld);
  }
}

template <class V>
void widen(const void* in, DataType dtype, std::int64_t n, float* out) {
  const std::int64_t whole = (n + V::lanes - 1) / V::lanes * V::lanes;
  if (dtype == DataType::bf16) {
    pack_rows<V>(static_cast<const Bf16*>(in), 0, 1, n, whole, out);
  } else {
    pack_rows<V>(static_cast<const F16*>(in), 0, 1, n, whole, out);
  }
}

}  // namespace
}  // namespace block_sparse::cpu::spmm
