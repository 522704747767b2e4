// SPDX-License-Identifier: Apache-2.0
#include "cpu/simd/avx512.h"

#include "cpu/spmm/decode.h"
#include "cpu/spmm/tiles.h"
#include "cpu/spmm/tokens.h"

namespace block_sparse::cpu::spmm {

const Kernels avx512_kernels = {panel_tokens, register_costs, scratch_bytes<Avx512>, block<Avx512>,
                                widen<Avx512>};
const Kernels avx512_decode_kernels = {decode_tokens, register_costs, decode_scratch_bytes,
                                       decode<Avx512>, widen<Avx512>};
const Kernels avx512_tokens_kernels = {panel_tokens, token_costs, tokens_scratch_bytes<Avx512>,
                                       tokens_block<Avx512>, widen<Avx512>};

}  // namespace block_sparse::cpu::spmm
