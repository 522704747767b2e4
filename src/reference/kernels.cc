// SPDX-License-Identifier: Apache-2.0
#include "reference/kernels.h"

namespace block_sparse::reference {

template <>
const Kernels<float>& best_kernels<float>() {
  return baseline_f32;
}

template <>
const Kernels<double>& best_kernels<double>() {
  return baseline_f64;
}

}  // namespace block_sparse::reference
