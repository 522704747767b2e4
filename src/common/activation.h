// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <numbers>

#include "block_sparse/types.h"

/// Internal linkage for the reason given in common/numeric.h.
namespace block_sparse {

/// A is float or double. NaN stays NaN under every activation.
template <class A>
static inline A activate(Activation activation, A v) {
  constexpr A half = A(0.5);
  switch (activation) {
    case Activation::relu:
      return v < A(0) ? A(0) : v;
    case Activation::gelu:
      return half * v * (A(1) + std::erf(v * (std::numbers::sqrt2_v<A> * half)));
    case Activation::gelu_tanh: {
      constexpr A sqrt_2_over_pi =
          std::numbers::sqrt2_v<A> * std::numbers::inv_sqrtpi_v<A>;  // of the usual fit to erf
      return half * v * (A(1) + std::tanh(sqrt_2_over_pi * (v + A(0.044715) * v * v * v)));
    }
    case Activation::silu:
      return v / (A(1) + std::exp(-v));
    default:
      return v;
  }
}

}  // namespace block_sparse
