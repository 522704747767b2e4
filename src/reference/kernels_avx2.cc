// SPDX-License-Identifier: Apache-2.0
#define BLOCK_SPARSE_VECTOR_BYTES 32
#include "reference/kernels_inl.h"

namespace block_sparse::reference {

const Kernels<float> avx2_f32 = {tile<float>, rows<float>, dots<float>};
const Kernels<double> avx2_f64 = {tile<double>, rows<double>, dots<double>};

}  // namespace block_sparse::reference
