// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/sddmm/sddmm.h"
#include "cpu/spmm/spmm.h"

/// The kernels of AMX on instructions in plain C++, so that they are tested wherever there is
/// AVX512-BF16, which does the rest.
namespace block_sparse::test {

extern const cpu::spmm::PairsKernels emulated_spmm;
extern const cpu::sddmm::Kernels emulated_sddmm;

/// Instructions that the processor would have refused, on any thread so far.
int refused_tile_instructions();
/// Whether the calling thread has released its tiles.
bool tiles_are_released();

}  // namespace block_sparse::test
