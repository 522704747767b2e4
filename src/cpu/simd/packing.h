// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "cpu/simd/avx2.h"

namespace block_sparse::cpu {
namespace {

/// Up to 8 rows of up to 8 elements, `ld` apart, become columns of 8 floats,
/// `ldo` apart. Missing rows are zero, missing columns are not written; neither
/// is read.
template <class T>
[[gnu::always_inline]] inline void transpose8(const T* in, std::int64_t ld, int rows, int cols,
                                              float* out, std::int64_t ldo) {
  __m256 row[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    row[i] = i >= rows  ? Avx2::zero()
             : cols < 8 ? Avx2::load_part(in + i * ld, cols)
                        : Avx2::load(in + i * ld);
  }
  __m256 pair[8];  // two rows interleaved
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    pair[i] = _mm256_unpacklo_ps(row[i], row[i + 1]);
    pair[i + 1] = _mm256_unpackhi_ps(row[i], row[i + 1]);
  }
  __m256 four[8];  // [4 j + i]: columns i and i + 4 of rows 4 j to 4 j + 3
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    four[i] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0x44);
    four[i + 1] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0xee);
    four[i + 2] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0x44);
    four[i + 3] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0xee);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    if (i >= cols) break;
    const __m256 column = i < 4 ? _mm256_permute2f128_ps(four[i], four[i + 4], 0x20)
                                : _mm256_permute2f128_ps(four[i - 4], four[i], 0x31);
    Avx2::store(out + i * ldo, column);
  }
}

/// in (rows, cols), `ld` apart, becomes out (cols, width) with zeros behind the
/// first `rows` of each row. width is a multiple of 8.
template <class T>
void pack_transposed(const T* in, std::int64_t ld, std::int64_t rows, std::int64_t cols,
                     std::int64_t width, float* out) {
  for (std::int64_t r = 0; r < width; r += 8) {
    const int height = static_cast<int>(r >= rows ? 0 : rows - r < 8 ? rows - r : 8);
    const T* from = in + r * ld;
    std::int64_t c = 0;
    if (height == 8) {
      for (; c + 8 <= cols; c += 8) transpose8(from + c, ld, 8, 8, out + c * width + r, width);
    }
    for (; c < cols; c += 8) {
      const int part = static_cast<int>(cols - c < 8 ? cols - c : 8);
      transpose8(from + c, ld, height, part, out + c * width + r, width);
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
