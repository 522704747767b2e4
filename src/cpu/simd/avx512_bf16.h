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
};

}  // namespace
}  // namespace block_sparse::cpu
