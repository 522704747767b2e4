// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>

#include "block_sparse/pattern.h"
#include "common/numeric.h"

namespace block_sparse::reference {

/// The part of block (row, column) that lies inside the matrix.
struct Extent {
  std::int64_t height;
  std::int64_t width;
};

inline Extent extent_of(const PatternView& p, std::int64_t block_row, std::int64_t block_col) {
  return {std::min(p.block_height, p.rows - block_row * p.block_height),
          std::min(p.block_width, p.cols - block_col * p.block_width)};
}

/// Calls body(i, block row) for the blocks [begin, end) in BSR order.
template <class Body>
void for_each_block(const PatternView& p, std::int64_t begin, std::int64_t end, Body&& body) {
  const std::int32_t* pointers = p.crow_indices;
  std::int64_t row =
      std::upper_bound(pointers, pointers + p.n_block_rows() + 1, begin) - pointers - 1;
  for (std::int64_t i = begin; i < end; ++i) {
    while (pointers[row + 1] <= i) ++row;
    body(i, row);
  }
}

/// out (features, width), aligned for the kernels: features [0, features) of
/// `tokens` rows of x, widened and transposed; tokens up to `width` become zero.
template <class T>
void pack_tokens(const T* x, std::int64_t ldx, std::int64_t tokens, std::int64_t features,
                 std::int64_t width, Accumulator<T>* out) {
  constexpr std::int64_t strip = 16;  // cache lines of `out` that are written side by side
  for (std::int64_t first = 0; first < features; first += strip) {
    const std::int64_t count = std::min(strip, features - first);
    Accumulator<T>* to = out + first * width;
    for (std::int64_t t = 0; t < tokens; ++t) {
      const T* from = x + t * ldx + first;
      for (std::int64_t f = 0; f < count; ++f) to[f * width + t] = widen(from[f]);
    }
    for (std::int64_t f = 0; f < count; ++f) {
      std::fill(to + f * width + tokens, to + (f + 1) * width, Accumulator<T>(0));
    }
  }
}

constexpr std::int64_t round_up(std::int64_t n, std::int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

}  // namespace block_sparse::reference
