// SPDX-License-Identifier: Apache-2.0
#include "cpu/simd/avx512_bf16.h"

#include "cpu/spmm/pairs.h"

namespace block_sparse::cpu::spmm {
namespace {

void stage_row(const PairsOperands& op, const void* row, std::int64_t token, float* out) {
  char* const to = reinterpret_cast<char*>(out + token * op.lda);
  const auto bytes = static_cast<std::size_t>(op.reduced) * sizeof(Bf16);
  __builtin_memcpy(to, row, bytes);
  __builtin_memset(to + bytes, 0, static_cast<std::size_t>(op.width) * sizeof(float) - bytes);
}

void multiply(const PairsOperands& operands, Range lines, Range tokens, void* scratch) {
  RegisterTiles<Avx512Bf16, ALayout::row_major> tiles;
  multiply_pairs(operands, lines, tokens, scratch, tiles);
}

// 32 multiply-adds a cycle, against some 10 bytes from L3.
constexpr Costs costs = {6, 6, 14, 2 * further_task};

}  // namespace

const PairsKernels avx512_bf16_kernels = {costs,     false,      pairs_scratch_bytes,
                                          stage_row, pack_pairs, multiply};

}  // namespace block_sparse::cpu::spmm
