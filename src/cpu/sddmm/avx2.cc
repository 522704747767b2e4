// SPDX-License-Identifier: Apache-2.0
#include "cpu/simd/avx2.h"

#include "cpu/sddmm/tiles.h"

namespace block_sparse::cpu::sddmm {

const Kernels avx2_kernels = {1,      1, sizeof(Scratch), pack<Avx2>, multiply<Avx2>, narrow<Avx2>,
                              squares};

}  // namespace block_sparse::cpu::sddmm
