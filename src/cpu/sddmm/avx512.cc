// SPDX-License-Identifier: Apache-2.0
#include "cpu/simd/avx512.h"

#include "cpu/sddmm/tiles.h"
#include "cpu/sddmm/tokens.h"

namespace block_sparse::cpu::sddmm {

const Kernels avx512_kernels = {
    1, 1, sizeof(Scratch), pack<Avx512>, multiply<Avx512>, narrow<Avx512>, squares};
const Kernels avx512_tokens_kernels = {1,
                                       Avx512::lanes,
                                       sizeof(TokensScratch),
                                       pack_tokens<Avx512>,
                                       multiply_tokens<Avx512>,
                                       narrow<Avx512>,
                                       squares};

}  // namespace block_sparse::cpu::sddmm
