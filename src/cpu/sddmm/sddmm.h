// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "block_sparse/types.h"
#include "cpu/range.h"

/// Weight gradient and block norms: blocks of dyᵀ x, each summed over the tokens.
/// Tokens come in passes: x is packed once for all blocks of a pass, blocks
/// accumulate in f32 over the passes, and a finish writes 16-bit results or norms.
namespace block_sparse::cpu::sddmm {

struct Operands {
  DataType dtype;  // of dy and x
  std::int64_t rows;
  std::int64_t cols;
  std::int64_t block_height;  // a multiple of 16 for tiles
  std::int64_t block_width;   // the same

  // Block i of BSR order; null for all blocks of the grid, row by row.
  const std::int32_t* crow_indices;
  const std::int32_t* col_indices;

  /// Accumulators of block i: c + (ids ? ids[i] : i - first_block) * block size.
  float* c;
  const std::int32_t* ids;
  std::int64_t first_block;

  // One pass: dy and x at its first token.
  std::int64_t tokens;
  const void* dy;
  std::int64_t lddy;
  const void* x;
  std::int64_t ldx;
  float* packed_x;     // x as the kernels pack it, packed_width() words for each of depth
  std::int64_t depth;  // words that a pass takes: see Kernels
  bool start_from_zero;

  std::int64_t block_rows() const { return (rows + block_height - 1) / block_height; }
  std::int64_t block_cols() const { return (cols + block_width - 1) / block_width; }
  /// Strips of x are whole vectors: the last may stick out by a vector of 16 and the block by 16.
  std::int64_t packed_width() const { return (cols + 15) / 16 * 16 + 16; }
  /// The first block of a row.
  std::int64_t pointer(std::int64_t row) const {
    return crow_indices == nullptr ? row * block_cols() : crow_indices[row];
  }
  /// The row of a block: the last whose pointer is not behind it.
  std::int64_t row_of(std::int64_t block) const {
    std::int64_t row = 0;
    std::int64_t end = block_rows();
    while (end - row > 1) {
      const std::int64_t middle = (row + end) / 2;
      (pointer(middle) <= block ? row : end) = middle;
    }
    return row;
  }
  float* accumulators(std::int64_t block) const {
    const std::int64_t place = ids != nullptr ? ids[block] : block - first_block;
    return c + place * block_height * block_width;
  }
};

/// Where the sums of a block go once they are complete.
struct Destination {
  DataType dtype;  // bf16 or f16
  bool accumulate;
  void* dvalues;  // of the block: (block_height, block_width), padding included
};

/// The part of a block that exists.
struct Extent {
  std::int64_t rows;
  std::int64_t cols;
};

/// What one instruction set offers.
struct Kernels {
  /// Tokens in a word of packed operands: 1, floats, or 2, pairs of bf16.
  int word_tokens;
  /// Packed operands hold a multiple of this many tokens, zeros behind those that exist.
  int token_unit;
  std::size_t scratch_bytes;
  /// Fills packed_x for these block columns.
  void (*pack)(const Operands& operands, Range block_cols);
  /// Adds the pass to the accumulators of these blocks.
  void (*multiply)(const Operands& operands, Range blocks, void* scratch);
  /// sums (valid part of block_height, block_width) to 16 bits.
  void (*narrow)(const float* sums, Extent block, Extent valid, const Destination& to);
  /// Sum of squares of the valid part.
  double (*squares)(const float* sums, Extent block, Extent valid);
};

extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
extern const Kernels avx512_bf16_kernels;
extern const Kernels amx_kernels;
extern const Kernels avx2_tokens_kernels;  // f32
extern const Kernels avx512_tokens_kernels;

}  // namespace block_sparse::cpu::sddmm
