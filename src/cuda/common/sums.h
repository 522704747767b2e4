// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "block_sparse/cuda.h"

namespace block_sparse::cuda {

/// Rows that `sum_of_rows` adds up sooner than torch's kernel can be asked to.
constexpr std::int64_t kMaxSummedRows = 256;

/// y (features) = the sum of `rows` <= kMaxSummedRows rows of x, `ldx` elements apart, in f32.
/// y is of the type of x, or f32.
Status sum_of_rows(DataType type, DataType out_type, const void* x, std::int64_t ldx,
                   std::int64_t rows, std::int64_t features, void* y, Stream stream);

}  // namespace block_sparse::cuda
