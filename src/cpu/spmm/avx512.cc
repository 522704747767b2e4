// SPDX-License-Identifier: Apache-2.0
#include "cpu/simd/avx512.h"

#include "cpu/spmm/decode.h"
#include "cpu/spmm/tiles.h"
#include "cpu/spmm/tokens.h"

namespace block_sparse::cpu::spmm {

const Kernels avx512_kernels = {register_costs, scratch_bytes<Avx512>, block<Avx512>, nullptr};
const Kernels avx512_decode_kernels = {register_costs, decode_scratch_bytes, decode<Avx512>,
                                       widen<Avx512>};
const Kernels avx512_tokens_kernels = {token_costs, tokens_scratch_bytes<Avx512>,
                                       tokens_block<Avx512>, nullptr};

}  // namespace block_sparse::cpu::spmm
