// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/simd/amx.h"
#include "cpu/spmm/pairs.h"

/// SpMM of bf16 on tiles, on the instructions I: those of AMX or, in tests, some that do the same.
namespace block_sparse::cpu::spmm {
namespace {

/// A in tiles (see AmxTiles): each is 16 neighbouring lines of cache, where rows of x would be some
/// KiB apart.
inline void stage_tiles(const PairsOperands& op, const void* row, std::int64_t token, float* out) {
  const std::int64_t words = tile_words(op.reduce_extent / 2);
  const Bf16* const from = static_cast<const Bf16*>(row);
  float* const to = out + token / 16 * 16 * op.lda + token % 16 * words;
  for (std::int64_t k = 0; k < op.width; k += words) {
    const __m512i values = _mm512_maskz_loadu_epi16(
        first_elements(smaller(2 * words, op.reduced - 2 * k)), from + 2 * k);
    _mm512_mask_storeu_epi32(to + 16 * k, first_lanes(words), values);
  }
}

template <class I>
void multiply_tiles(const PairsOperands& op, Range lines, Range tokens, void* scratch) {
  AmxTiles<I> tiles(op.reduce_extent / 2);
  multiply_pairs(op, lines, tokens, scratch, tiles);
}

// 512 multiply-adds a cycle, against some 10 bytes from L3.
constexpr Costs tile_costs = {100, 100, 32, 10 * further_task};

template <class I>
constexpr PairsKernels amx_kernels_on = {tile_costs,  true,       pairs_scratch_bytes,
                                         stage_tiles, pack_pairs, multiply_tiles<I>};

}  // namespace
}  // namespace block_sparse::cpu::spmm
