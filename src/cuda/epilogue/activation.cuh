// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "block_sparse/types.h"

namespace block_sparse::cuda {

template <class A>
__device__ __forceinline__ A activate(A v, Activation activation) {
  switch (activation) {
    case Activation::relu:
      return v < A(0) ? A(0) : v;  // keeps NaN
    case Activation::gelu:
      return A(0.5) * v * (A(1) + erf(v * A(0.70710678118654752440)));
    case Activation::gelu_tanh: {
      const A inner = A(0.79788456080286535588) * (v + A(0.044715) * v * v * v);
      return A(0.5) * v * (A(1) + tanh(inner));
    }
    case Activation::silu:
      return v / (A(1) + exp(-v));
    default:
      return v;
  }
}

}  // namespace block_sparse::cuda
