// SPDX-License-Identifier: Apache-2.0
#include "cpu/simd/avx2.h"

#include "cpu/sddmm/tiles.h"
#include "cpu/sddmm/tokens.h"

namespace block_sparse::cpu::sddmm {

const Kernels avx2_kernels = {1,      1, sizeof(Scratch), pack<Avx2>, multiply<Avx2>, narrow<Avx2>,
                              squares};
const Kernels avx2_tokens_kernels = {1,
                                     Avx2::lanes,
                                     sizeof(TokensScratch),
                                     pack_tokens<Avx2>,
                                     multiply_tokens<Avx2>,
                                     narrow<Avx2>,
                                     squares};

}  // namespace block_sparse::cpu::sddmm
