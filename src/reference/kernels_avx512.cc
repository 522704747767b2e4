// SPDX-License-Identifier: Apache-2.0
#define BLOCK_SPARSE_VECTOR_BYTES 64
#include "reference/kernels_inl.h"

namespace block_sparse::reference {

const Kernels<float> avx512_f32 = {tile<float>, rows<float>, dots<float>};
const Kernels<double> avx512_f64 = {tile<double>, rows<double>, dots<double>};

}  // namespace block_sparse::reference
