// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "block_sparse/types.h"

/// 16-bit element types and their conversions, without branches, so that loops
/// over them vectorise. Everything has internal linkage: sources compiled for
/// wider instruction sets include this too, and their copies must stay theirs.
namespace block_sparse {

struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

/// What sums of products of T are held in.
template <class T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

static inline float widen(float value) { return value; }
static inline double widen(double value) { return value; }

static inline float widen(BFloat16 value) {
  return std::bit_cast<float>(std::uint32_t{value.bits} << 16);
}

static inline float widen(Float16 value) {
  const std::uint32_t sign = (std::uint32_t{value.bits} & 0x8000u) << 16;
  const std::uint32_t magnitude = (std::uint32_t{value.bits} & 0x7fffu) << 13;
  // The exponent bias of float16 is 15, of float32 127. All three results are
  // computed and one is chosen.
  const std::uint32_t normal = magnitude + ((127u - 15u) << 23);
  const std::uint32_t not_finite = magnitude + ((255u - 31u) << 23);
  // A subnormal m * 2^-24 becomes the low bits of 2^-14 * (1 + m / 2^10), from
  // which 2^-14 is taken again: exact, and also with subnormals flushed to zero.
  constexpr std::uint32_t two_to_minus_14 = (127u - 14u) << 23;
  const std::uint32_t subnormal = std::bit_cast<std::uint32_t>(
      std::bit_cast<float>(magnitude + two_to_minus_14) - std::bit_cast<float>(two_to_minus_14));
  std::uint32_t result = magnitude >= 0x0f800000u ? not_finite : normal;
  result = magnitude < 0x00800000u ? subnormal : result;
  return std::bit_cast<float>(result | sign);
}

/// To T, to nearest, ties to even; overflow becomes infinity, NaN stays NaN.
template <class T>
static inline T narrow(Accumulator<T> value) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const std::uint32_t quiet_nan = (bits >> 16) | 0x0040u;
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return {static_cast<std::uint16_t>(is_nan ? quiet_nan : rounded)};
  } else if constexpr (std::is_same_v<T, Float16>) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    const std::uint32_t sign = (bits >> 16) & 0x8000u;
    const std::uint32_t magnitude = bits & 0x7fffffffu;
    const std::uint32_t normal =
        (magnitude - ((127u - 15u) << 23) + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
    // Adding 0.5, whose last place is 2^-24, rounds to a multiple of the
    // smallest subnormal, which then stands in the low bits.
    constexpr std::uint32_t half = 126u << 23;
    const std::uint32_t subnormal =
        std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + std::bit_cast<float>(half)) -
        half;
    std::uint32_t result = magnitude < (113u << 23) ? subnormal : normal;
    result = result > 0x7c00u || magnitude >= (143u << 23) ? 0x7c00u : result;
    result = magnitude > 0x7f800000u ? 0x7e00u : result;
    return {static_cast<std::uint16_t>(result | sign)};
  } else {
    return value;
  }
}

/// Calls `body` with a null pointer of the element type: the type is the argument.
template <class Body>
static inline auto with_type(DataType type, Body&& body) {
  switch (type) {
    case DataType::f64:
      return body(static_cast<double*>(nullptr));
    case DataType::bf16:
      return body(static_cast<BFloat16*>(nullptr));
    case DataType::f16:
      return body(static_cast<Float16*>(nullptr));
    default:
      return body(static_cast<float*>(nullptr));
  }
}

}  // namespace block_sparse
