// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "block_sparse/types.h"

namespace block_sparse::cuda {

using bf16 = __nv_bfloat16;
using f16 = __half;

/// Sums of 16-bit and f32 products are f32, those of f64 are f64.
template <class T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <class T>
using accumulator_t = typename Accumulator<T>::type;

__device__ __forceinline__ float widen(float v) { return v; }
__device__ __forceinline__ double widen(double v) { return v; }
__device__ __forceinline__ float widen(bf16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float widen(f16 v) { return __half2float(v); }

template <class T>
__device__ __forceinline__ T narrow(accumulator_t<T> v) {
  if constexpr (std::is_same_v<T, bf16>) {
    return __float2bfloat16_rn(v);
  } else if constexpr (std::is_same_v<T, f16>) {
    return __float2half_rn(v);
  } else {
    return v;
  }
}

/// Two f32 rounded to 16 bits, the first in the low half.
template <class T>
__device__ __forceinline__ unsigned narrow_pair(float low, float high) {
  if constexpr (std::is_same_v<T, bf16>) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const unsigned*>(&pair);
  } else {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const unsigned*>(&pair);
  }
}

/// Calls `f` with a value of the element type; used to pick an instantiation.
template <class F>
auto with_element(DataType type, F&& f) {
  switch (type) {
    case DataType::f64:
      return f(double{});
    case DataType::f32:
      return f(float{});
    case DataType::bf16:
      return f(bf16{});
    default:
      return f(f16{});
  }
}

}  // namespace block_sparse::cuda
