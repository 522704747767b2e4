// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "block_sparse/pattern.h"

namespace block_sparse {

void transpose(const PatternView& pattern, std::int32_t* ccol_indices, std::int32_t* row_indices,
               std::int32_t* t_block_ids) {
  const std::int64_t block_rows = pattern.n_block_rows();
  const std::int64_t block_cols = pattern.n_block_cols();
  const std::int64_t blocks = pattern.n_blocks();

  // Counting sort by column. While the blocks are placed, ccol_indices[c + 1]
  // is where the next block of column c goes; it ends where column c + 1 starts.
  std::fill(ccol_indices, ccol_indices + block_cols + 1, 0);
  for (std::int64_t i = 0; i < blocks; ++i) {
    const std::int64_t column = pattern.col_indices[i];
    if (column + 2 <= block_cols) ++ccol_indices[column + 2];
  }
  for (std::int64_t c = 2; c <= block_cols; ++c) ccol_indices[c] += ccol_indices[c - 1];
  for (std::int64_t row = 0; row < block_rows; ++row) {
    for (std::int32_t i = pattern.crow_indices[row]; i < pattern.crow_indices[row + 1]; ++i) {
      const std::int32_t place = ccol_indices[pattern.col_indices[i] + 1]++;
      row_indices[place] = static_cast<std::int32_t>(row);
      t_block_ids[place] = pattern.block_ids[i];
    }
  }
}

}  // namespace block_sparse
