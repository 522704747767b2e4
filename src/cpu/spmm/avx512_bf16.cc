// SPDX-License-Identifier: Apache-2.0
#include "cpu/simd/avx512_bf16.h"

#include "cpu/spmm/pairs.h"

namespace block_sparse::cpu::spmm {
namespace {

struct DotTiles {
  using Pair = Tiles<Avx512Bf16, 2, ALayout::row_major>;
  using Single = Tiles<Avx512Bf16, 1, ALayout::row_major>;
};

}  // namespace

const Kernels avx512_bf16_kernels = {pairs_panel, 2, pairs_scratch_bytes, pairs_block<DotTiles>,
                                     stage_pairs};

}  // namespace block_sparse::cpu::spmm
