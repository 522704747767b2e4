// SPDX-License-Identifier: Apache-2.0
#include "reference/kernels.h"

namespace block_sparse::reference {

#if defined(__x86_64__)

template <>
const Kernels<float>& choose_kernels<float>(cpu::Features features) {
  if ((features & cpu::avx512) != 0) return avx512_f32;
  return (features & cpu::avx2_fma) != 0 ? avx2_f32 : baseline_f32;
}

template <>
const Kernels<double>& choose_kernels<double>(cpu::Features features) {
  if ((features & cpu::avx512) != 0) return avx512_f64;
  return (features & cpu::avx2_fma) != 0 ? avx2_f64 : baseline_f64;
}

#else

template <>
const Kernels<float>& choose_kernels<float>(cpu::Features) {
  return baseline_f32;
}

template <>
const Kernels<double>& choose_kernels<double>(cpu::Features) {
  return baseline_f64;
}

#endif

}  // namespace block_sparse::reference
