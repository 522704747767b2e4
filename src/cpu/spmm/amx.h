// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/simd/amx.h"
#include "cpu/spmm/pairs.h"

/// SpMM of bf16 on tiles, on the instructions I: those of AMX or, in tests, some that do the same.
namespace block_sparse::cpu::spmm {
namespace {

template <class I>
void block_of_tiles(const Operands& operands, Range lines, Range tokens, void* scratch) {
  AmxTiles<I> tiles(operands.reduce_extent / 2);
  pairs_block(operands, lines, tokens, scratch, tiles);
}

template <class I>
constexpr Kernels amx_kernels_on = {all_tokens,          {40, 0, 32},       2,
                                    pairs_scratch_bytes, block_of_tiles<I>, stage_pairs};

}  // namespace
}  // namespace block_sparse::cpu::spmm
