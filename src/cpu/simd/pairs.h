// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/simd/elements.h"

/// Words: two neighbours of bf16 in the reduced index, the first one in the lower half. They
/// travel as floats, whose bits nothing looks at.
namespace block_sparse::cpu {
namespace {

inline __mmask16 first_lanes(std::int64_t n) {
  return static_cast<__mmask16>(n >= 16 ? 0xffffu : n <= 0 ? 0u : (1u << n) - 1u);
}

inline __mmask32 first_elements(std::int64_t n) {
  return n >= 32 ? 0xffffffffu : n <= 0 ? 0 : (1u << n) - 1u;
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

/// Row i and word j change places.
inline void transpose(__m512i (&row)[16]) {
  __m512i pair[16];  // words of two rows in turn
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    pair[i] = _mm512_unpacklo_epi32(row[i], row[i + 1]);
    pair[i + 1] = _mm512_unpackhi_epi32(row[i], row[i + 1]);
  }
  __m512i four[16];  // [4 i + j]: column j of each quarter of rows 4 i to 4 i + 3
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    four[i] = _mm512_unpacklo_epi64(pair[i], pair[i + 2]);
    four[i + 1] = _mm512_unpackhi_epi64(pair[i], pair[i + 2]);
    four[i + 2] = _mm512_unpacklo_epi64(pair[i + 1], pair[i + 3]);
    four[i + 3] = _mm512_unpackhi_epi64(pair[i + 1], pair[i + 3]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512i even_top = _mm512_shuffle_i32x4(four[j], four[4 + j], 0x88);
    const __m512i odd_top = _mm512_shuffle_i32x4(four[j], four[4 + j], 0xdd);
    const __m512i even_end = _mm512_shuffle_i32x4(four[8 + j], four[12 + j], 0x88);
    const __m512i odd_end = _mm512_shuffle_i32x4(four[8 + j], four[12 + j], 0xdd);
    row[j] = _mm512_shuffle_i32x4(even_top, even_end, 0x88);
    row[4 + j] = _mm512_shuffle_i32x4(odd_top, odd_end, 0x88);
    row[8 + j] = _mm512_shuffle_i32x4(even_top, even_end, 0xdd);
    row[12 + j] = _mm512_shuffle_i32x4(odd_top, odd_end, 0xdd);
  }
}

/// in (rows, cols), `ld` apart, becomes words (depth, width) of neighbours in a column, zeros where
/// in has no more. width is a multiple of 16.
inline void interleave_rows(const Bf16* in, std::int64_t ld, std::int64_t rows, std::int64_t cols,
                            std::int64_t depth, std::int64_t width, float* out) {
  for (std::int64_t k = 0; k < depth; ++k) {
    const Bf16* const first = in + 2 * k * ld;
    const Bf16* const second = 2 * k + 1 < rows ? first + ld : nullptr;
    for (std::int64_t c = 0; c < width; c += 16) {
      const std::int64_t n = 2 * k < rows ? cols - c : 0;
      const __m512i words = interleave(first + c, second == nullptr ? nullptr : second + c, n);
      _mm512_storeu_si512(out + k * width + c, words);
    }
  }
}

/// The quarter at `from` of four rows, 4 `stride` elements apart from each other.
inline __m512i load_quarters(const Bf16* from, std::int64_t stride) {
  const auto quarter = [&](std::int64_t i) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 4 * i * stride));
  };
  // From memory, inserting is no shuffle and so finds more ports.
  __m512i out = _mm512_castsi128_si512(quarter(0));
  out = _mm512_inserti32x4(out, quarter(1), 1);
  out = _mm512_inserti32x4(out, quarter(2), 2);
  return _mm512_inserti32x4(out, quarter(3), 3);
}

/// 16 rows of 16 words, `ld` elements apart, become 16 rows of 16, `width` words apart.
inline void transpose_words(const Bf16* in, std::int64_t ld, std::int64_t width, float* out) {
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q) {
    __m512i row[4];  // rows 0, 4, 8 and 12 and so on
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) row[i] = load_quarters(in + i * ld + 8 * q, ld);
    const __m512i low01 = _mm512_unpacklo_epi32(row[0], row[1]);
    const __m512i low23 = _mm512_unpacklo_epi32(row[2], row[3]);
    const __m512i high01 = _mm512_unpackhi_epi32(row[0], row[1]);
    const __m512i high23 = _mm512_unpackhi_epi32(row[2], row[3]);
    float* const to = out + 4 * q * width;
    _mm512_storeu_si512(to, _mm512_unpacklo_epi64(low01, low23));
    _mm512_storeu_si512(to + width, _mm512_unpackhi_epi64(low01, low23));
    _mm512_storeu_si512(to + 2 * width, _mm512_unpacklo_epi64(high01, high23));
    _mm512_storeu_si512(to + 3 * width, _mm512_unpackhi_epi64(high01, high23));
  }
}

/// in (rows, cols), `ld` apart, becomes words (depth, width) of neighbours in a row, zeros where in
/// has no more. width is a multiple of 16.
inline void pair_columns(const Bf16* in, std::int64_t ld, std::int64_t rows, std::int64_t cols,
                         std::int64_t depth, std::int64_t width, float* out) {
  for (std::int64_t r = 0; r < width; r += 16) {
    for (std::int64_t k = 0; k < depth; k += 16) {
      if (r + 16 <= rows && 2 * k + 32 <= cols) {
        transpose_words(in + r * ld + 2 * k, ld, width, out + k * width + r);
        continue;
      }
      __m512i words[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) {
        const __mmask32 there = first_elements(r + i < rows ? cols - 2 * k : 0);
        words[i] = _mm512_maskz_loadu_epi16(there, in + (r + i) * ld + 2 * k);
      }
      transpose(words);
      for (std::int64_t i = 0; i < 16 && k + i < depth; ++i) {
        _mm512_storeu_si512(out + (k + i) * width + r, words[i]);
      }
    }
  }
}

}  // namespace
}  // namespace block_sparse::cpu
