// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/simd/avx512.h"
#include "cpu/simd/packing.h"

/// Words: two neighbours of bf16 in the reduced index, the first one in the lower half. They
/// travel as floats, whose bits nothing looks at.
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

inline __mmask16 first_lanes(std::int64_t n) {
  return static_cast<__mmask16>(n >= 16 ? 0xffffu : (1u << n) - 1u);
}

/// Up to 16 elements of two rows as words; `second` may be null for a row of zeros. Lanes behind
/// the first n are zero, and not read.
inline __m512i interleave(const Bf16* first, const Bf16* second, std::int64_t n) {
  const __mmask16 lanes = first_lanes(n);
  const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, first));
  if (second == nullptr) return low;
  const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, second));
  return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

/// in (rows, cols), `ld` apart, becomes words (half of rows rounded up, width), zeros behind the
/// first `cols` of each. width is a multiple of 16.
inline void interleave_rows(const Bf16* in, std::int64_t ld, std::int64_t rows, std::int64_t cols,
                            std::int64_t width, float* out) {
  for (std::int64_t r = 0; r < rows; r += 2) {
    const Bf16* const first = in + r * ld;
    const Bf16* const second = r + 1 < rows ? first + ld : nullptr;
    for (std::int64_t c = 0; c < width; c += 16) {
      const std::int64_t n = c < cols ? cols - c : 0;
      const __m512i words = interleave(first + c, second == nullptr ? nullptr : second + c, n);
      _mm512_storeu_si512(out + r / 2 * width + c, words);
    }
  }
}

/// in (rows, cols), `ld` apart and a multiple of 2, becomes words (half of cols rounded up, width),
/// zeros behind the first `rows` of each. width is a multiple of 8.
inline void pair_columns(const Bf16* in, std::int64_t ld, std::int64_t rows, std::int64_t cols,
                         std::int64_t width, float* out) {
  pack_transposed(reinterpret_cast<const float*>(in), ld / 2, rows, cols / 2, width, out);
  if (cols % 2 == 0) return;
  float* const last = out + cols / 2 * width;
  for (std::int64_t r = 0; r < width; ++r) {
    const std::uint32_t word = r < rows ? in[r * ld + cols - 1].bits : 0;
    __builtin_memcpy(last + r, &word, sizeof word);
  }
}

}  // namespace
}  // namespace block_sparse::cpu
