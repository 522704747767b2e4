// SPDX-License-Identifier: Apache-2.0
#include "cpu/simd/avx512_bf16.h"

#include "cpu/sddmm/tiles.h"
#include "cpu/simd/pairs.h"

namespace block_sparse::cpu::sddmm {
namespace {

/// bf16 as pairs of tokens.
struct TokenPairs {
  using Vector = Avx512;
  using Element = Bf16;
  using Tiles = RegisterTiles<Avx512Bf16, ALayout::k_major>;
  static constexpr std::int64_t word_tokens = 2;
  static std::int64_t lda(std::int64_t rows, std::int64_t /*depth*/) { return rows; }

  static void pack_x(const Bf16* x, std::int64_t ld, std::int64_t tokens, std::int64_t cols,
                     std::int64_t width, std::int64_t depth, float* out) {
    interleave_rows(x, ld, tokens, cols, depth, width, out);
  }

  static void pack_dy(const Bf16* dy, std::int64_t ld, std::int64_t tokens, std::int64_t rows,
                      std::int64_t /*readable*/, std::int64_t /*depth*/, float* out) {
    for (std::int64_t t = 0; t < tokens; t += 2) {
      const Bf16* const first = dy + t * ld;
      const Bf16* const second = t + 1 < tokens ? first + ld : nullptr;
      for (std::int64_t v = 0; v < rows; v += 16) {
        const __m512i words =
            interleave(first + v, second == nullptr ? nullptr : second + v, rows - v);
        _mm512_mask_storeu_epi32(out + t / 2 * rows + v, first_lanes(rows - v), words);
      }
    }
  }
};

void pack_pairs(const Operands& op, Range block_cols) { pack_of<TokenPairs>(op, block_cols); }

void multiply_pairs(const Operands& op, Range blocks, void* scratch) {
  multiply_of<TokenPairs>(op, blocks, *static_cast<Scratch*>(scratch));
}

}  // namespace

const Kernels avx512_bf16_kernels = {
    2, 2, sizeof(Scratch), pack_pairs, multiply_pairs, narrow<Avx512>, squares};

}  // namespace block_sparse::cpu::sddmm
