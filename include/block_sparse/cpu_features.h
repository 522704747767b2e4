// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

namespace block_sparse::cpu {

/// Instruction sets that kernels are chosen by, as a bit mask.
enum Feature : std::uint32_t {
  avx2_fma = 1u << 0,     // AVX2, FMA and F16C
  avx512 = 1u << 1,       // F, BW, DQ, VL
  avx512_bf16 = 1u << 2,  // AVX512-BF16, where it outruns FMA
  amx_bf16 = 1u << 3,     // AMX-TILE, AMX-BF16 and AVX512-BF16, permission granted
};
using Features = std::uint32_t;

/// What this processor and operating system offer; asked once. AMX is reported
/// only after the kernel has granted its use to the process.
Features detected_features();

/// For example "avx2_fma avx512"; "baseline" for none.
std::string to_string(Features features);

}  // namespace block_sparse::cpu
