// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/sddmm/tiles.h"
#include "cpu/simd/amx.h"
#include "cpu/simd/avx512.h"
#include "cpu/simd/pairs.h"

/// SDDMM of bf16 on tiles, on the instructions I: those of AMX or, in tests, some that do the same.
namespace block_sparse::cpu::sddmm {
namespace {

/// bf16 as pairs of tokens, 16 of them a tile; dy transposed.
template <class I>
struct TokenTiles {
  using Vector = Avx512;
  using Element = Bf16;
  using Tiles = AmxTiles<I>;
  static constexpr std::int64_t word_tokens = 2;
  static std::int64_t lda(std::int64_t /*rows*/, std::int64_t depth) { return depth; }

  static void pack_x(const Bf16* x, std::int64_t ld, std::int64_t tokens, std::int64_t cols,
                     std::int64_t width, std::int64_t depth, float* out) {
    interleave_rows(x, ld, tokens, cols, depth, width, out);
  }

  /// dy (tokens, rows) becomes tiles.
  static void pack_dy(const Bf16* dy, std::int64_t ld, std::int64_t tokens, std::int64_t rows,
                      std::int64_t /*readable*/, std::int64_t depth, float* out) {
    for (std::int64_t k = 0; k < depth; k += 16) {
      for (std::int64_t v = 0; v < rows; v += 16) {
        __m512i words[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) {
          const std::int64_t t = 2 * (k + i);
          const Bf16* const first = dy + t * ld + v;
          words[i] = t >= tokens
                         ? _mm512_setzero_si512()
                         : interleave(first, t + 1 < tokens ? first + ld : nullptr, rows - v);
        }
        transpose(words);
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) {
          _mm512_storeu_si512(out + v * depth + 16 * k + 16 * i, words[i]);
        }
      }
    }
  }
};

template <class I>
void pack_tiles(const Operands& op, Range block_cols) {
  pack_of<TokenTiles<I>>(op, block_cols);
}

template <class I>
void multiply_tiles(const Operands& op, Range blocks, void* scratch) {
  multiply_of<TokenTiles<I>>(op, blocks, *static_cast<Scratch*>(scratch));
}

template <class I>
constexpr Kernels amx_kernels_on = {
    2, 32, sizeof(Scratch), pack_tiles<I>, multiply_tiles<I>, narrow<Avx512>, squares};

}  // namespace
}  // namespace block_sparse::cpu::sddmm
