// SPDX-License-Identifier: Apache-2.0
#include "cpu/simd/avx2.h"

#include "cpu/spmm/decode.h"
#include "cpu/spmm/tiles.h"
#include "cpu/spmm/tokens.h"

namespace block_sparse::cpu::spmm {

const Kernels avx2_kernels = {register_costs, scratch_bytes<Avx2>, block<Avx2>, nullptr};
const Kernels avx2_decode_kernels = {register_costs, decode_scratch_bytes, decode<Avx2>,
                                     widen<Avx2>};
const Kernels avx2_tokens_kernels = {token_costs, tokens_scratch_bytes<Avx2>, tokens_block<Avx2>,
                                     nullptr};

}  // namespace block_sparse::cpu::spmm
