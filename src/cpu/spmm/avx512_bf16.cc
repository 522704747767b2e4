// SPDX-License-Identifier: Apache-2.0
#include "cpu/simd/avx512_bf16.h"

#include "cpu/spmm/pairs.h"

namespace block_sparse::cpu::spmm {
namespace {

void block_of_pairs(const Operands& operands, Range lines, Range tokens, void* scratch) {
  RegisterTiles<Avx512Bf16, ALayout::row_major> tiles;
  pairs_block(operands, lines, tokens, scratch, tiles);
}

}  // namespace

const Kernels avx512_bf16_kernels = {all_tokens,          {4, 0, 14},     2,
                                     pairs_scratch_bytes, block_of_pairs, stage_pairs};

}  // namespace block_sparse::cpu::spmm
