// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/micro_kernel.h"
#include "cpu/sddmm/sddmm.h"
#include "cpu/simd/elements.h"
#include "cpu/simd/packing.h"

/// SDDMM from register tiles: outputs of W are the rows of a tile, its inputs
/// the vectors, tokens the reduced index. Included by one source per
/// instruction set, which says in a format F how operands are packed and tiles multiplied.
namespace block_sparse::cpu::sddmm {
namespace {

/// Words of tokens between two visits to a tile of accumulators: the packed strip of x
/// and the packed dy of a group of rows stay in L1.
constexpr std::int64_t chunk_words = 256;
/// Rows of a block for which dy is packed at once.
constexpr std::int64_t group_rows = 64;

struct Scratch {
  // One vector more than the tiles hold: each row of a tile is stored as whole vectors.
  alignas(64) float packed_dy[chunk_words * group_rows + 16];
  alignas(64) float partial[group_rows * 32];  // accumulators of a strip that sticks out
  alignas(64) float zeros[32];
};

constexpr std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
constexpr std::int64_t larger(std::int64_t a, std::int64_t b) { return a > b ? a : b; }

/// Inputs that one tile covers, from input `i` of a block.
template <class V>
std::int64_t strip_width(const Operands& op, std::int64_t i) {
  return op.block_width - i >= 2 * V::lanes ? 2 * V::lanes : V::lanes;
}

/// Operands of T as floats, one token a word.
template <class V, class T>
struct Floats {
  using Vector = V;
  using Element = T;
  using Tiles = RegisterTiles<V, ALayout::k_major>;
  static constexpr std::int64_t word_tokens = 1;
  /// Of the packed dy of a tile.
  static std::int64_t lda(std::int64_t rows, std::int64_t /*depth*/) { return rows; }

  /// x (tokens, cols), `ld` apart, as (depth, width), zeros behind cols.
  static void pack_x(const T* x, std::int64_t ld, std::int64_t tokens, std::int64_t cols,
                     std::int64_t width, std::int64_t /*depth*/, float* out) {
    pack_rows<V>(x, ld, tokens, cols, width, out);
  }

  /// dy (tokens, rows), `ld` apart, `readable` elements of each row allowed to be
  /// read, becomes (tokens, rows) without gaps; up to a vector behind is overwritten.
  static void pack_dy(const T* dy, std::int64_t ld, std::int64_t tokens, std::int64_t rows,
                      std::int64_t readable, std::int64_t /*depth*/, float* out) {
    for (std::int64_t v = 0; v < rows; v += V::lanes) {
      const int part = static_cast<int>(smaller(readable - v, V::lanes));
      // Stores overlap the next token's place, so tokens go in order and vectors of a row from
      // the left would spoil their neighbours: only a row of one vector may overlap.
      const std::int64_t kept = smaller(rows - v, V::lanes);
      for (std::int64_t t = 0; t < tokens; ++t) {
        const T* from = dy + t * ld + v;
        const typename V::Float value = part == V::lanes ? V::load(from) : V::load_part(from, part);
        if (rows <= V::lanes || kept == V::lanes) {
          V::store(out + t * rows + v, value);
        } else {
          V::store_part(out + t * rows + v, value, static_cast<int>(kept));
        }
      }
    }
  }
};

template <class F>
void pack_of(const Operands& op, Range block_cols) {
  using V = typename F::Vector;
  for (std::int64_t col = block_cols.begin; col < block_cols.end; ++col) {
    const std::int64_t first = col * op.block_width;
    const std::int64_t valid = smaller(op.block_width, op.cols - first);
    for (std::int64_t i = 0; i < valid; i += strip_width<V>(op, i)) {
      const std::int64_t width = strip_width<V>(op, i);
      F::pack_x(static_cast<const typename F::Element*>(op.x) + first + i, op.ldx, op.tokens,
                smaller(width, valid - i), width, op.depth, op.packed_x + (first + i) * op.depth);
    }
  }
}

/// One row of blocks, one group of its rows, one chunk of tokens.
template <class F>
class Panel {
  using V = typename F::Vector;
  using T = typename F::Element;

 public:
  Panel(const Operands& operands, Scratch& scratch, typename F::Tiles& tiles, std::int64_t row,
        std::int64_t first_row, Range tokens)
      : op_(operands), s_(scratch), tiles_(tiles), first_row_(first_row), tokens_(tokens) {
    const std::int64_t begin = row * op_.block_height + first_row;
    const std::int64_t group = smaller(group_rows, op_.block_height - first_row);
    rows_ = smaller(group, op_.rows - begin);
    // Only the last chunk may be filled up to a unit of tokens.
    depth_ = smaller(chunk_words, op_.depth - tokens.begin / F::word_tokens);
    start_ = op_.start_from_zero && tokens.begin == 0 ? s_.zeros : nullptr;
    pair_ = op_.block_width >= 2 * V::lanes;
    const T* dy = static_cast<const T*>(op_.dy) + tokens.begin * op_.lddy + begin;
    for (std::int64_t i = 0; i < tile_count(); ++i) {
      const std::int64_t at = tile_begin(i);
      F::pack_dy(dy + at, op_.lddy, tokens.end - tokens.begin, tile_begin(i + 1) - at,
                 op_.rows - begin - at, depth_, s_.packed_dy + at * depth_);
    }
  }

  /// Adds this chunk to block i, which lies in block column `col`.
  void add_to(std::int64_t i, std::int64_t col) const {
    float* const c = op_.accumulators(i) + first_row_ * op_.block_width;
    const std::int64_t first = col * op_.block_width;
    const std::int64_t valid = smaller(op_.block_width, op_.cols - first);
    for (std::int64_t o = 0; o < valid; o += strip_width<V>(op_, o)) {
      const std::int64_t width = strip_width<V>(op_, o);
      const float* x =
          op_.packed_x + (first + o) * op_.depth + tokens_.begin / F::word_tokens * width;
      if (o + width <= valid) {
        strip(x, width, c + o, op_.block_width);
      } else {
        // Whole vectors would touch the padding of the block.
        copy(c + o, op_.block_width, s_.partial, width, valid - o);
        strip(x, width, s_.partial, width);
        copy(s_.partial, width, c + o, op_.block_width, valid - o);
      }
    }
  }

 private:
  using Pair = typename F::Tiles::Pair;
  using Single = typename F::Tiles::Single;

  // A block of one vector a row has tiles of more rows.
  std::int64_t tile_count() const { return pair_ ? Pair::count(rows_) : Single::count(rows_); }
  std::int64_t tile_begin(std::int64_t i) const {
    return pair_ ? Pair::begin(rows_, i) : Single::begin(rows_, i);
  }

  void strip(const float* x, std::int64_t width, float* c, std::int64_t ldc) const {
    const Run run{0, 0, depth_};
    TileArgs args;
    args.runs = &run;
    args.n_runs = 1;
    args.b = x;
    args.ldb = width;
    args.ldc = ldc;
    args.start = start_;
    for (std::int64_t i = 0; i < tile_count(); ++i) {
      const std::int64_t begin = tile_begin(i);
      const std::int64_t rows = tile_begin(i + 1) - begin;
      args.a = s_.packed_dy + begin * depth_;
      args.lda = F::lda(rows, depth_);
      args.c = c + begin * ldc;
      if (width == 2 * V::lanes) {
        tiles_.pair(rows, args);
      } else {
        tiles_.single(rows, args);
      }
    }
  }

  void copy(const float* from, std::int64_t ld_from, float* to, std::int64_t ld_to,
            std::int64_t cols) const {
    for (std::int64_t r = 0; r < rows_; ++r) {
      for (std::int64_t o = 0; o < cols; ++o) to[r * ld_to + o] = from[r * ld_from + o];
    }
  }

  const Operands& op_;
  Scratch& s_;
  typename F::Tiles& tiles_;
  const std::int64_t first_row_;  // of the block
  const Range tokens_;
  std::int64_t depth_;  // words of the chunk
  std::int64_t rows_;   // of this group that exist
  const float* start_;
  bool pair_;
};

template <class F>
void multiply_of(const Operands& op, Range blocks, Scratch& scratch) {
  constexpr std::int64_t chunk_tokens = chunk_words * F::word_tokens;
  typename F::Tiles tiles;
  for (float& zero : scratch.zeros) zero = 0;
  const std::int64_t grid = op.block_cols();
  std::int64_t row = op.row_of(blocks.begin);
  for (std::int64_t begin = blocks.begin; begin < blocks.end; ++row) {
    const std::int64_t end = smaller(op.pointer(row + 1), blocks.end);
    if (end <= begin) continue;
    for (std::int64_t first = 0; first < op.block_height; first += group_rows) {
      if (row * op.block_height + first >= op.rows) break;
      for (std::int64_t t = 0; t < op.tokens; t += chunk_tokens) {
        const Panel<F> panel(op, scratch, tiles, row, first,
                             {t, smaller(t + chunk_tokens, op.tokens)});
        for (std::int64_t i = begin; i < end; ++i) {
          panel.add_to(i, op.col_indices == nullptr ? i % grid : op.col_indices[i]);
        }
      }
    }
    begin = end;
  }
}

template <class V>
void pack(const Operands& op, Range block_cols) {
  switch (op.dtype) {
    case DataType::f32:
      return pack_of<Floats<V, float>>(op, block_cols);
    case DataType::bf16:
      return pack_of<Floats<V, Bf16>>(op, block_cols);
    case DataType::f16:
      return pack_of<Floats<V, F16>>(op, block_cols);
    case DataType::f64:
      return;  // refused before
  }
}

template <class V>
void multiply(const Operands& op, Range blocks, void* scratch) {
  switch (op.dtype) {
    case DataType::f32:
      return multiply_of<Floats<V, float>>(op, blocks, *static_cast<Scratch*>(scratch));
    case DataType::bf16:
      return multiply_of<Floats<V, Bf16>>(op, blocks, *static_cast<Scratch*>(scratch));
    case DataType::f16:
      return multiply_of<Floats<V, F16>>(op, blocks, *static_cast<Scratch*>(scratch));
    case DataType::f64:
      return;  // refused before
  }
}

template <class V, class T>
void narrow_to(const float* sums, Extent block, Extent valid, bool accumulate, T* out) {
  for (std::int64_t r = 0; r < valid.rows; ++r) {
    const float* from = sums + r * block.cols;
    T* to = out + r * block.cols;
    for (std::int64_t o = 0; o < valid.cols; o += V::lanes) {
      const int part = static_cast<int>(smaller(valid.cols - o, V::lanes));
      typename V::Float sum = V::load_part(from + o, part);
      if (accumulate) sum = V::add(sum, V::load_part(to + o, part));
      V::store_part(to + o, sum, part);
    }
  }
}

template <class V>
void narrow(const float* sums, Extent block, Extent valid, const Destination& to) {
  if (to.dtype == DataType::bf16) {
    narrow_to<V>(sums, block, valid, to.accumulate, static_cast<Bf16*>(to.dvalues));
  } else {
    narrow_to<V>(sums, block, valid, to.accumulate, static_cast<F16*>(to.dvalues));
  }
}

/// In double: squares of f32 neither overflow nor vanish.
inline double squares(const float* sums, Extent block, Extent valid) {
  __m256d low = _mm256_setzero_pd();
  __m256d high = _mm256_setzero_pd();
  for (std::int64_t r = 0; r < valid.rows; ++r) {
    for (std::int64_t o = 0; o < valid.cols; o += Avx2::lanes) {
      const __m256 v = Avx2::load_part(sums + r * block.cols + o,
                                       static_cast<int>(smaller(valid.cols - o, Avx2::lanes)));
      const __m256d a = _mm256_cvtps_pd(_mm256_castps256_ps128(v));
      const __m256d b = _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1));
      low = _mm256_fmadd_pd(a, a, low);
      high = _mm256_fmadd_pd(b, b, high);
    }
  }
  double parts[4];
  _mm256_storeu_pd(parts, _mm256_add_pd(low, high));
  return (parts[0] + parts[1]) + (parts[2] + parts[3]);
}

}  // namespace
}  // namespace block_sparse::cpu::sddmm
