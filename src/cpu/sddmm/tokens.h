// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/micro_kernel.h"
#include "cpu/sddmm/sddmm.h"
#include "cpu/simd/packing.h"

/// SDDMM of f32 with the tokens along the vectors, for blocks of any shape: dy and x are packed
/// transposed, and each element of a block is a dot product of two of their rows, as many of them
/// at a time as a vector has lanes, whose sums across the lanes then fill one. Included by one
/// source per instruction set.
namespace block_sparse::cpu::sddmm {
namespace {

/// Rows of dy that are packed together.
constexpr std::int64_t tokens_rows = 64;
/// x between two visits to the blocks, which cost a sum across lanes each: 2 MiB, much of it in L2.
constexpr std::int64_t tokens_packed_x = 512 * 1024;
constexpr std::int64_t tokens_packed_dy = 6 * 1024;  // 24 KiB
constexpr std::int64_t least_chunk = 256;
constexpr std::int64_t most_chunk = 1024;

struct TokensScratch {
  // A tile may read, and then drop, rows behind the last.
  alignas(64) float dy[(tokens_rows + 16) * most_chunk];
};

/// The sums across the lanes of each of 8 vectors.
inline __m256 sums_of_8(const __m256 (&v)[8]) {
  const __m256 low = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
  const __m256 high = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
  return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20),
                       _mm256_permute2f128_ps(low, high, 0x31));
}

/// The same of as many vectors as one has lanes.
template <class V>
[[gnu::always_inline]] inline void store_sums(const typename V::Float (&v)[V::lanes], float* out) {
#pragma GCC unroll 2
  for (int i = 0; i < V::lanes; i += 8) {
    __m256 halves[8];
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) halves[j] = V::fold(v[i + j]);
    Avx2::store(out + i, sums_of_8(halves));
  }
}

/// Rows of dy and x, `length` elements and as far apart.
struct DotTile {
  const float* dy;
  const float* x;
  std::int64_t length;  // a multiple of the lanes
  float* c;             // (rows, cols) of the block, `ldc` apart
  std::int64_t ldc;
  std::int64_t rows;  // that exist
  std::int64_t cols;
  bool start_from_zero;
};

template <class V, int rows, int cols>
void dot_tile(const DotTile& tile) {
  static_assert(rows * cols == V::lanes);
  using Float = typename V::Float;
  const std::int64_t ld = tile.length;
  // One address register serves three rows.
  constexpr int a_bases = (rows + 2) / 3;
  constexpr int b_bases = (cols + 2) / 3;
  const float* a[a_bases];
  const float* b[b_bases];
#pragma GCC unroll 6
  for (int g = 0; g < a_bases; ++g) opaque(a[g] = tile.dy + g * 3 * ld);
#pragma GCC unroll 6
  for (int g = 0; g < b_bases; ++g) opaque(b[g] = tile.x + g * 3 * ld);
  Float sum[V::lanes];
#pragma GCC unroll 16
  for (Float& s : sum) s = V::zero();
  for (std::int64_t t = 0; t < tile.length; t += V::lanes) {
    // The shorter side stays in registers.
    constexpr int held = rows < cols ? rows : cols;
    Float side[held];
#pragma GCC unroll 16
    for (int i = 0; i < held; ++i) {
      side[i] = V::load((rows < cols ? a[i / 3] : b[i / 3]) + i % 3 * ld + t);
    }
#pragma GCC unroll 16
    for (int j = 0; j < V::lanes / held; ++j) {
      const Float other = V::load((rows < cols ? b[j / 3] : a[j / 3]) + j % 3 * ld + t);
#pragma GCC unroll 16
      for (int i = 0; i < held; ++i) {
        Float& s = sum[rows < cols ? i * cols + j : j * cols + i];
        s = V::fma(other, side[i], s);
      }
    }
  }
  float totals[V::lanes];
  store_sums<V>(sum, totals);
  for (std::int64_t m = 0; m < smaller(rows, tile.rows); ++m) {
    float* const to = tile.c + m * tile.ldc;
    for (std::int64_t j = 0; j < smaller(cols, tile.cols); ++j) {
      to[j] = totals[m * cols + j] + (tile.start_from_zero ? 0.0f : to[j]);
    }
  }
}

/// Tokens of a chunk. The dy of a tile stays in L1: of as many rows as lanes if blocks are columns.
template <class V>
std::int64_t chunk_of(const Operands& op) {
  const std::int64_t most = op.block_width == 1 ? tokens_packed_dy / V::lanes : most_chunk;
  const std::int64_t fit = tokens_packed_x / op.packed_width() / V::lanes * V::lanes;
  return smaller(larger(fit, least_chunk), most);
}
/// Where a chunk begins in packed x, in which it lies as (columns, tokens).
inline float* packed_chunk(const Operands& op, std::int64_t first_token) {
  return op.packed_x + first_token * op.packed_width();
}

template <class V>
void pack_tokens(const Operands& op, Range block_cols) {
  const std::int64_t first = block_cols.begin * op.block_width;
  const std::int64_t cols = smaller(block_cols.end * op.block_width, op.cols) - first;
  const std::int64_t chunk = chunk_of<V>(op);
  for (std::int64_t t = 0; t < op.tokens; t += chunk) {
    const std::int64_t length = smaller(chunk, op.depth - t);
    pack_transposed(static_cast<const float*>(op.x) + t * op.ldx + first, op.ldx,
                    smaller(chunk, op.tokens - t), cols, length,
                    packed_chunk(op, t) + first * length);
  }
}

/// One block and one chunk; dy at the rows of the block.
template <class V, int rows, int cols>
void add_block(const Operands& op, Extent valid, const float* x, bool start_from_zero,
               std::int64_t length, const float* dy, float* c) {
  DotTile tile;
  tile.length = length;
  tile.ldc = op.block_width;
  tile.start_from_zero = start_from_zero;
  for (std::int64_t j = 0; j < valid.cols; j += cols) {
    tile.x = x + j * length;
    tile.cols = valid.cols - j;
    for (std::int64_t m = 0; m < valid.rows; m += rows) {
      tile.dy = dy + m * length;
      tile.c = c + m * op.block_width + j;
      tile.rows = valid.rows - m;
      dot_tile<V, rows, cols>(tile);
    }
  }
}

/// Some block rows that have one packed dy.
template <class V>
void add_rows(const Operands& op, Range rows, Range blocks, std::int64_t first_token,
              std::int64_t length, const float* dy, std::int64_t first_row) {
  const bool zero = op.start_from_zero && first_token == 0;
  for (std::int64_t row = rows.begin; row < rows.end; ++row) {
    const Range part{larger(op.pointer(row), blocks.begin),
                     smaller(op.pointer(row + 1), blocks.end)};
    // Of this row, those that are in dy.
    const std::int64_t begin = larger(row * op.block_height, first_row);
    const std::int64_t end =
        smaller(smaller((row + 1) * op.block_height, op.rows), first_row + tokens_rows);
    for (std::int64_t i = part.begin; i < part.end; ++i) {
      const std::int64_t first =
          (op.col_indices == nullptr ? i % op.block_cols() : op.col_indices[i]) * op.block_width;
      const Extent valid{end - begin, smaller(op.block_width, op.cols - first)};
      const float* const x = packed_chunk(op, first_token) + first * length;
      float* const c = op.accumulators(i) + (begin - row * op.block_height) * op.block_width;
      const float* const from = dy + (begin - first_row) * length;
      if (op.block_width == 1) {
        add_block<V, V::lanes, 1>(op, valid, x, zero, length, from, c);
      } else if (op.block_height == 1) {
        add_block<V, 1, V::lanes>(op, valid, x, zero, length, from, c);
      } else {
        add_block<V, V::lanes / 4, 4>(op, valid, x, zero, length, from, c);
      }
    }
  }
}

template <class V>
void multiply_tokens(const Operands& op, Range blocks, void* scratch) {
  float* const packed = static_cast<TokensScratch*>(scratch)->dy;
  const std::int64_t chunk = chunk_of<V>(op);
  const std::int64_t group = larger(1, tokens_rows / op.block_height);
  const std::int64_t first_row = op.row_of(blocks.begin);
  for (std::int64_t t = 0; t < op.tokens; t += chunk) {
    const std::int64_t length = smaller(chunk, op.depth - t);
    for (std::int64_t row = first_row; row < op.block_rows() && op.pointer(row) < blocks.end;
         row += group) {
      const Range rows{row, smaller(row + group, op.block_rows())};
      const std::int64_t end = smaller(rows.end * op.block_height, op.rows);
      for (std::int64_t r = row * op.block_height; r < end; r += tokens_rows) {
        pack_transposed(static_cast<const float*>(op.dy) + t * op.lddy + r, op.lddy,
                        smaller(chunk, op.tokens - t), smaller(tokens_rows, end - r), length,
                        packed);
        add_rows<V>(op, rows, blocks, t, length, packed, r);
      }
    }
  }
}

}  // namespace
}  // namespace block_sparse::cpu::sddmm
