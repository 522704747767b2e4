// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "block_sparse/status.h"

namespace block_sparse {

/// Which blocks of a matrix are stored, and in which slot of `values` each one
/// lives: block compressed sparse rows (BSR) and, for products with the
/// transpose, the same by columns. A view: it owns nothing.
///
/// The matrix is (rows, cols) in elements, cut into blocks of
/// (block_height, block_width); the last block row and column may stick out
/// (ragged), their padding is never read. `values` is (slots, block_height,
/// block_width), each block row-major. The number of stored blocks is
/// crow_indices[n_block_rows()], at most `slots`: the other slots are spare.
struct PatternView {
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t block_height = 1;
  std::int64_t block_width = 1;
  std::int64_t slots = 0;

  const std::int32_t* crow_indices = nullptr;  // n_block_rows() + 1
  const std::int32_t* col_indices = nullptr;   // block column of block i
  const std::int32_t* block_ids = nullptr;     // slot of block i

  // The transpose; may be null where a product does not need it.
  const std::int32_t* ccol_indices = nullptr;  // n_block_cols() + 1
  const std::int32_t* row_indices = nullptr;   // block row, in column order
  const std::int32_t* t_block_ids = nullptr;   // slot, in column order

  std::int64_t n_block_rows() const { return (rows + block_height - 1) / block_height; }
  std::int64_t n_block_cols() const { return (cols + block_width - 1) / block_width; }
  std::int64_t n_blocks() const { return crow_indices[n_block_rows()]; }
};

/// Everything a pattern must satisfy: row pointers start at 0, never decrease
/// and end at or below `slots`; columns in range, sorted and unique within
/// their row; slots in range and unique. The transpose is not looked at.
Status validate(const PatternView& pattern);

/// The part of `validate` that memory safety needs, fast enough for every
/// call: pointers monotone and bounded, columns and slots in range.
Status check_bounds(const PatternView& pattern);
/// The same for the transposed arrays.
Status check_transpose_bounds(const PatternView& pattern);

/// Fills the transposed arrays of a valid pattern: ccol_indices
/// (n_block_cols() + 1), row_indices and t_block_ids (n_blocks() each). Within
/// a column, rows ascend.
void transpose(const PatternView& pattern, std::int32_t* ccol_indices, std::int32_t* row_indices,
               std::int32_t* t_block_ids);

/// Cuts [0, n) lines, line i holding pointers[i+1] - pointers[i] blocks, into
/// `parts` consecutive ranges of nearly equal blocks (a line without blocks
/// costs as much as `empty_line_cost` blocks). Returns parts + 1 boundaries.
std::vector<std::int64_t> partition_by_blocks(const std::int32_t* pointers, std::int64_t n,
                                              int parts, double empty_line_cost = 0.25);

/// An owning pattern, with its transpose, for C++ programs.
class Pattern {
 public:
  /// Validates, takes a copy and transposes it. crow_indices has block rows + 1
  /// entries; col_indices and block_ids one for each stored block, or up to one
  /// for each slot as a saved layer has them: what lies beyond the stored blocks
  /// is ignored. `block_ids` empty means the identity. `out` stays as it was
  /// unless the status is ok.
  static Status create(std::int64_t rows, std::int64_t cols, std::int64_t block_height,
                       std::int64_t block_width, std::vector<std::int32_t> crow_indices,
                       std::vector<std::int32_t> col_indices, std::vector<std::int32_t> block_ids,
                       std::int64_t slots, Pattern* out);

  PatternView view() const;

 private:
  PatternView extent_;
  std::vector<std::int32_t> crow_, col_, ids_, ccol_, row_, t_ids_;
};

}  // namespace block_sparse
