// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/simd/elements.h"

/// AVX2 + FMA + F16C. Included only by sources compiled with those flags, and
/// of internal linkage, so that nothing of it can be linked into other code.
namespace block_sparse::cpu {
namespace {

struct Avx2 {
  using Float = __m256;
  static constexpr int lanes = 8;
  static constexpr bool broadcasts_operands = false;  // not of FMA
  /// Accumulator tiles (rows x vectors) of the micro kernel: 12 accumulators, 2
  /// vectors and 1 broadcast of 16 registers. 12 also hide the latency of FMA (4
  /// cycles, 2 a cycle).
  static constexpr int rows_of_two = 6;
  static constexpr int rows_of_one = 12;
  /// Of a tile with three or more vectors, each in a register of its own.
  static constexpr int accumulators = 12;
  /// Tokens of a tile of dot products, times 4 outputs: 12 accumulators.
  static constexpr int dot_tokens = 3;

  static Float zero() { return _mm256_setzero_ps(); }
  static Float set(float value) { return _mm256_set1_ps(value); }
  static Float broadcast(const float* p) { return _mm256_broadcast_ss(p); }
  static Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float sub(Float a, Float b) { return _mm256_sub_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float div(Float a, Float b) { return _mm256_div_ps(a, b); }
  /// a * b + c
  static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  /// sum += a * b, in the register of the sum: left to itself the compiler moves sums around.
  static void accumulate(Float& sum, Float a, Float b) {
    asm("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
  }
  /// sum += *a * b
  static void accumulate(Float& sum, const float* a, Float b) { accumulate(sum, broadcast(a), b); }
  /// b where either is NaN.
  static Float max(Float a, Float b) { return _mm256_max_ps(a, b); }
  static Float min(Float a, Float b) { return _mm256_min_ps(a, b); }
  static Float round(Float a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static Float abs(Float a) {
    return _mm256_and_ps(a, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff)));
  }
  /// Where the sign bit of `sign` is set b, else a.
  static Float select_by_sign(Float sign, Float a, Float b) { return _mm256_blendv_ps(a, b, sign); }
  /// a * 2^n for a whole n from -252 to 254; subnormal results are rounded once.
  static Float scale(Float a, Float n) {
    // In two factors, since 2^n itself may be subnormal.
    const __m256i whole = _mm256_cvtps_epi32(n);
    const __m256i half = _mm256_srai_epi32(whole, 1);
    const Float first = power_of_two(half);
    return mul(mul(a, first), power_of_two(_mm256_sub_epi32(whole, half)));
  }
  /// 8 numbers of the same sum.
  static __m256 fold(Float a) { return a; }
  static float sum(Float a) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }

  static Float load(const float* p) { return _mm256_loadu_ps(p); }
  static Float load(const Bf16* p) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  static Float load(const F16* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static void store(float* p, Float v) { _mm256_storeu_ps(p, v); }
  static void store(Bf16* p, Float v) {
    const __m256i bits = _mm256_castps_si256(v);
    // To nearest, ties to even; a NaN keeps its upper bits and becomes quiet.
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i upper = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(upper, upper), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
  }
  static void store(F16* p, Float v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }

  /// The first n < lanes elements, then zeros; nothing behind them is touched.
  static Float load_part(const float* p, int n) { return _mm256_maskload_ps(p, first(n)); }
  template <class T>
  static Float load_part(const T* p, int n) {
    T copy[lanes] = {};
    __builtin_memcpy(copy, p, static_cast<unsigned>(n) * sizeof(T));
    return load(copy);
  }
  static void store_part(float* p, Float v, int n) { _mm256_maskstore_ps(p, first(n), v); }
  template <class T>
  static void store_part(T* p, Float v, int n) {
    T copy[lanes];
    store(copy, v);
    __builtin_memcpy(p, copy, static_cast<unsigned>(n) * sizeof(T));
  }

 private:
  static Float power_of_two(__m256i n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
  }
  static __m256i first(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
};

}  // namespace
}  // namespace block_sparse::cpu
