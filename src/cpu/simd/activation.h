// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "block_sparse/types.h"

/// Activations on vectors. Relative error in units of 2^-24, as long as no
/// exponential is subnormal: silu 7, gelu 29 (12 seen), gelu_tanh 7 + 7 |z| where it
/// is x e^z, since its formula turns roundings of z into errors of that size. Infinities
/// and NaN give what the formula gives: gelu(-inf) and silu(-inf) are -inf * 0 = NaN.
namespace block_sparse::cpu {
namespace {

template <class V>
struct Math {
  using Float = typename V::Float;

  /// sum of c[i] x^i
  template <int n>
  static Float polynomial(const float (&c)[n], Float x) {
    Float sum = V::set(c[n - 1]);
#pragma GCC unroll 16
    for (int i = n - 2; i >= 0; --i) sum = V::fma(sum, x, V::set(c[i]));
    return sum;
  }

  /// e^x for x <= 0, with gradual underflow; NaN gives some number in [0, 1].
  static Float exp_of_negative(Float x) {
    // Below -104 even the smallest subnormal is too large. The bound second: where x is NaN.
    x = V::max(x, V::set(-104.0f));
    const Float n = V::round(V::mul(x, V::set(1.44269504f)));
    // x - n ln 2, ln 2 in two parts of which n times the first is exact.
    Float r = V::fma(n, V::set(-0.693359375f), x);
    r = V::fma(n, V::set(2.12194440e-4f), r);
    // |r| <= 0.35: the remainder of the Taylor series after r^7 is below 2^-27.
    constexpr float taylor[] = {1.0f,      1.0f,       1.0f / 2,   1.0f / 6,
                                1.0f / 24, 1.0f / 120, 1.0f / 720, 1.0f / 5040};
    return V::scale(polynomial(taylor, r), n);
  }

  /// 1 / (1 + e^-x), to full relative accuracy on both sides.
  static Float sigmoid(Float x) {
    const Float e = exp_of_negative(V::sub(V::zero(), V::abs(x)));
    return V::div(V::select_by_sign(x, V::set(1.0f), e), V::add(V::set(1.0f), e));
  }

  static Float silu(Float x) { return V::mul(x, sigmoid(x)); }

  /// x (1 + tanh(z)) / 2 = x sigmoid(2 z), z = sqrt(2/pi) (x + 0.044715 x^3).
  static Float gelu_tanh(Float x) {
    const Float cubic = V::fma(V::mul(x, x), V::set(0.044715f), V::set(1.0f));
    return V::mul(x, sigmoid(V::mul(V::mul(x, V::set(1.59576912f)), cubic)));
  }

  /// x Phi(x). With u = |x|, Phi(-u) = e^(-u^2/2) g(u), g smooth: a polynomial in
  /// t = 1 / (1 + 0.26 u), fitted for u <= 14.5 by least squares reweighted to
  /// equal ripple, 5.5e-9 relative. So small results keep their accuracy too.
  static Float gelu(Float x) {
    // Beyond 14.5 the tail is below the smallest subnormal.
    const Float u = V::min(V::abs(x), V::set(14.5f));
    const Float square = V::mul(u, u);
    // u^2 is too large for e^(-u^2/2) to bear its rounding, so that is put back.
    const Float rest = V::fma(u, u, V::sub(V::zero(), square));
    const Float bell = exp_of_negative(V::mul(square, V::set(-0.5f)));
    const Float corrected = V::fma(V::mul(bell, rest), V::set(-0.5f), bell);
    constexpr float g[] = {-7.16713157e-06f, 0.103906617f, 0.101715364f,  0.109481886f,
                           0.0312067475f,    0.200119063f, -0.200813025f, 0.290983528f,
                           -0.170519292f,    0.0339262746f};
    const Float t = V::div(V::set(1.0f), V::fma(u, V::set(0.26f), V::set(1.0f)));
    const Float tail = V::mul(corrected, polynomial(g, t));
    return V::mul(x, V::select_by_sign(x, V::sub(V::set(1.0f), tail), tail));
  }

  /// NaN stays NaN.
  static Float relu(Float x) { return V::max(V::zero(), x); }
};

template <class V, Activation activation>
inline typename V::Float activate(typename V::Float x) {
  if constexpr (activation == Activation::relu) return Math<V>::relu(x);
  if constexpr (activation == Activation::gelu) return Math<V>::gelu(x);
  if constexpr (activation == Activation::gelu_tanh) return Math<V>::gelu_tanh(x);
  if constexpr (activation == Activation::silu) return Math<V>::silu(x);
  return x;
}

}  // namespace
}  // namespace block_sparse::cpu
