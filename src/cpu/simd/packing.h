// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "cpu/simd/avx2.h"

namespace block_sparse::cpu {
namespace {

/// Four elements at `low`, then four at `high`.
[[gnu::always_inline]] inline __m256 load_halves(const float* low, const float* high) {
  // Inserted from memory, which costs no shuffle.
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low)), _mm_loadu_ps(high), 1);
}
template <class T>
[[gnu::always_inline]] inline __m256 load_halves(const T* low, const T* high) {
  T both[8];
  __builtin_memcpy(both, low, 4 * sizeof(T));
  __builtin_memcpy(both + 4, high, 4 * sizeof(T));
  return Avx2::load(both);
}

/// 8 rows of 8 elements, `ld` apart, become columns of 8 floats, `ldo` apart.
template <class T>
[[gnu::always_inline]] inline void transpose8(const T* in, std::int64_t ld, float* out,
                                              std::int64_t ldo) {
#pragma GCC unroll 2
  for (int c = 0; c < 8; c += 4) {
    __m256 row[4];  // rows i and i + 4
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) row[i] = load_halves(in + i * ld + c, in + (i + 4) * ld + c);
    const __m256 low01 = _mm256_unpacklo_ps(row[0], row[1]);
    const __m256 high01 = _mm256_unpackhi_ps(row[0], row[1]);
    const __m256 low23 = _mm256_unpacklo_ps(row[2], row[3]);
    const __m256 high23 = _mm256_unpackhi_ps(row[2], row[3]);
    Avx2::store(out + c * ldo, _mm256_shuffle_ps(low01, low23, 0x44));
    Avx2::store(out + (c + 1) * ldo, _mm256_shuffle_ps(low01, low23, 0xee));
    Avx2::store(out + (c + 2) * ldo, _mm256_shuffle_ps(high01, high23, 0x44));
    Avx2::store(out + (c + 3) * ldo, _mm256_shuffle_ps(high01, high23, 0xee));
  }
}

/// in (rows, cols), `ld` apart, becomes out (cols, width) with zeros behind the
/// first `rows` of each row. width is a multiple of 8.
template <class T>
void pack_transposed(const T* in, std::int64_t ld, std::int64_t rows, std::int64_t cols,
                     std::int64_t width, float* out) {
  for (std::int64_t r = 0; r < width; r += 8) {
    const std::int64_t height = r >= rows ? 0 : rows - r < 8 ? rows - r : 8;
    const T* from = in + r * ld;
    std::int64_t c = 0;
    if (height == 8) {
      for (; c + 8 <= cols; c += 8) transpose8(from + c, ld, out + c * width + r, width);
    }
    for (; c < cols; ++c) {
      T column[8] = {};
      for (std::int64_t i = 0; i < height; ++i) column[i] = from[i * ld + c];
      Avx2::store(out + c * width + r, Avx2::load(column));
    }
  }
}

/// in (rows, cols), `ld` apart, becomes out (rows, width) of floats with zeros
/// behind the first `cols` of each row. width is a multiple of V::lanes.
template <class V, class T>
void pack_rows(const T* in, std::int64_t ld, std::int64_t rows, std::int64_t cols,
               std::int64_t width, float* out) {
  for (std::int64_t r = 0; r < rows; ++r) {
    const T* from = in + r * ld;
    float* to = out + r * width;
    std::int64_t c = 0;
    for (; c + V::lanes <= cols; c += V::lanes) V::store(to + c, V::load(from + c));
    if (c < cols) {
      V::store(to + c, V::load_part(from + c, static_cast<int>(cols - c)));
      c += V::lanes;
    }
    for (; c < width; c += V::lanes) V::store(to + c, V::zero());
  }
}

}  // namespace
}  // namespace block_sparse::cpu
