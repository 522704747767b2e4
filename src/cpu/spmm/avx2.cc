// SPDX-License-Identifier: Apache-2.0
#include "cpu/simd/avx2.h"

#include "cpu/spmm/decode.h"
#include "cpu/spmm/tiles.h"

namespace block_sparse::cpu::spmm {

const Kernels avx2_kernels = {Avx2::panel, 1, sizeof(Scratch<Avx2>), block<Avx2>, widen<Avx2>};
const Kernels avx2_decode_kernels = {decode_tokens, 1, sizeof(DecodeScratch), decode<Avx2>,
                                     widen<Avx2>};

}  // namespace block_sparse::cpu::spmm
