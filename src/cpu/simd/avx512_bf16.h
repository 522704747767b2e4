// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/simd/avx512.h"

namespace block_sparse::cpu {
namespace {

/// AVX512-BF16, with which the micro kernel takes two products of bf16 a lane. It rounds to
/// nearest and takes subnormal numbers for zero.
struct Avx512Bf16 : Avx512 {
  using Avx512::store;
  using Avx512::store_part;
  static void store(Bf16* p, Float v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrowed(v));
  }
  static void store_part(Bf16* p, Float v, int n) {
    _mm256_mask_storeu_epi16(p, static_cast<__mmask16>((1u << n) - 1u), narrowed(v));
  }
  static Float broadcast(const float* p) {
    std::int32_t word;
    __builtin_memcpy(&word, p, sizeof word);
    return _mm512_castsi512_ps(_mm512_set1_epi32(word));
  }
  static void accumulate(Float& sum, Float a, Float b) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  }
  static void accumulate(Float& sum, const float* a, Float b) {
    asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(b), "m"(*a));
  }

 private:
  static __m256i narrowed(Float v) {
    __m256i out;
    asm("vcvtneps2bf16 %1, %0" : "=v"(out) : "v"(v));
    return out;
  }
};

}  // namespace
}  // namespace block_sparse::cpu
