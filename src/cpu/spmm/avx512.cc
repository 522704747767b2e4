// SPDX-License-Identifier: Apache-2.0
#include "cpu/simd/avx512.h"

#include "cpu/spmm/decode.h"
#include "cpu/spmm/tiles.h"

namespace block_sparse::cpu::spmm {

const Kernels avx512_kernels = {Avx512::panel, 1, sizeof(Scratch<Avx512>), block<Avx512>,
                                widen<Avx512>};
const Kernels avx512_decode_kernels = {decode_tokens, 1, sizeof(DecodeScratch), decode<Avx512>,
                                       widen<Avx512>};

}  // namespace block_sparse::cpu::spmm
