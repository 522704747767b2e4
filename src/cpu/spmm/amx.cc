// SPDX-License-Identifier: Apache-2.0
#include "cpu/spmm/amx.h"

namespace block_sparse::cpu::spmm {

const PairsKernels amx_kernels = amx_kernels_on<AmxBf16>;

}  // namespace block_sparse::cpu::spmm
