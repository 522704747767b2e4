// SPDX-License-Identifier: Apache-2.0
#include "cpu/sddmm/amx.h"

namespace block_sparse::cpu::sddmm {

const Kernels amx_kernels = amx_kernels_on<AmxBf16>;

}  // namespace block_sparse::cpu::sddmm
