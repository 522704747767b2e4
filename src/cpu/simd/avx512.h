// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <immintrin.h>

#include "cpu/simd/avx2.h"
#include "cpu/simd/elements.h"

/// AVX-512 F, BW, DQ, VL. The same vocabulary as Avx2, twice as wide.
namespace block_sparse::cpu {
namespace {

struct Avx512 {
  using Float = __m512;
  static constexpr int lanes = 16;
  /// An FMA takes an element of memory for all lanes. A broadcast of its own for each two FMAs
  /// makes half as many instructions again, and a core that looks a number of them ahead sees less
  /// of A and B that comes from L2.
  static constexpr bool broadcasts_operands = true;
  /// 28 accumulators, up to 2 vectors and 1 broadcast of 32 registers.
  static constexpr int rows_of_two = 14;
  static constexpr int rows_of_one = 28;
  /// Of a tile with three or more vectors, each in a register of its own.
  static constexpr int accumulators = 24;
  /// 24 accumulators, 6 vectors of tokens and 1 of W.
  static constexpr int dot_tokens = 6;

  static Float zero() { return _mm512_setzero_ps(); }
  static Float set(float value) { return _mm512_set1_ps(value); }
  static Float broadcast(const float* p) { return _mm512_set1_ps(*p); }
  static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float div(Float a, Float b) { return _mm512_div_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  /// sum += a * b, in the register of the sum: left to itself the compiler moves sums around.
  static void accumulate(Float& sum, Float a, Float b) {
    asm("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  }
  /// sum += *a * b
  static void accumulate(Float& sum, const float* a, Float b) {
    asm("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(b), "m"(*a));
  }
  static Float max(Float a, Float b) { return _mm512_max_ps(a, b); }
  static Float min(Float a, Float b) { return _mm512_min_ps(a, b); }
  static Float round(Float a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static Float abs(Float a) { return _mm512_abs_ps(a); }
  static Float select_by_sign(Float sign, Float a, Float b) {
    return _mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(sign)), a, b);
  }
  static Float scale(Float a, Float n) { return _mm512_scalef_ps(a, n); }
  static __m256 fold(Float a) {
    return _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
  }
  static float sum(Float a) { return Avx2::sum(fold(a)); }

  static Float load(const float* p) { return _mm512_loadu_ps(p); }
  static Float load(const Bf16* p) { return widen_bf16(_mm256_loadu_si256(bits(p))); }
  static Float load(const F16* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(bits(p))); }
  static void store(float* p, Float v) { _mm512_storeu_ps(p, v); }
  static void store(Bf16* p, Float v) { _mm256_storeu_si256(bits(p), narrow_bf16(v)); }
  static void store(F16* p, Float v) { _mm256_storeu_si256(bits(p), narrow_f16(v)); }

  static Float load_part(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
  static Float load_part(const Bf16* p, int n) {
    return widen_bf16(_mm256_maskz_loadu_epi16(first(n), p));
  }
  static Float load_part(const F16* p, int n) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p));
  }
  static void store_part(float* p, Float v, int n) { _mm512_mask_storeu_ps(p, first(n), v); }
  static void store_part(Bf16* p, Float v, int n) {
    _mm256_mask_storeu_epi16(p, first(n), narrow_bf16(v));
  }
  static void store_part(F16* p, Float v, int n) {
    _mm256_mask_storeu_epi16(p, first(n), narrow_f16(v));
  }

 private:
  template <class T>
  static const __m256i* bits(const T* p) {
    return reinterpret_cast<const __m256i*>(p);
  }
  template <class T>
  static __m256i* bits(T* p) {
    return reinterpret_cast<__m256i*>(p);
  }
  static __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1u); }

  static Float widen_bf16(__m256i upper) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(upper), 16));
  }
  static __m256i narrow_bf16(Float v) {
    const __m512i whole = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(whole, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_add_epi32(whole, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i quiet = _mm512_or_si512(whole, _mm512_set1_epi32(0x400000));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(
        _mm512_srli_epi32(_mm512_mask_blend_epi32(nan, rounded, quiet), 16));
  }
  static __m256i narrow_f16(Float v) {
    return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
};

}  // namespace
}  // namespace block_sparse::cpu
