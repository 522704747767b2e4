// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "cpu/micro_kernel.h"
#include "cpu/simd/packing.h"
#include "cpu/spmm/ends.h"
#include "cpu/spmm/spmm.h"

/// SpMM of f32 with the tokens along the vectors: for blocks of any shape, whose outputs may fill
/// no vector, and for few tokens, since W is used where it lies. A is packed transposed, and sums
/// are transposed back; tiles.h has neither, and is faster where it can run and there are many
/// tokens. Included by one source per instruction set.
namespace block_sparse::cpu::spmm {
namespace {

/// A that is packed at a time: 512 KiB.
constexpr std::int64_t tokens_packed_a = 128 * 1024;
/// Outputs that are transposed together: whole cache lines of y. Fewer where W is gathered, which
/// then shares L2 with A.
constexpr std::int64_t tokens_outputs = 64;
constexpr std::int64_t tokens_gathered_outputs = 32;

/// tile<V, 1...>, tile<V, 2...> and so on up to `most_rows`.
template <class V, int vectors, ALayout layout>
struct TokenTiles {
  static constexpr std::int64_t width = vectors * V::lanes;
  static constexpr int most_rows = V::accumulators / vectors < 16 ? V::accumulators / vectors : 16;

  static void run(std::int64_t rows, const TileArgs& args) {
    functions(std::make_integer_sequence<int, most_rows>())[rows - 1](args);
  }

 private:
  template <int... index>
  static const TileFunction* functions(std::integer_sequence<int, index...>) {
    static constexpr TileFunction table[] = {tile<V, index + 1, vectors, layout>...};
    return table;
  }
};

/// How the work of a thread is cut.
struct TokensShape {
  TokensShape(const Operands& op, std::int64_t strip_width)
      : width(strip_width), depth(op.reduced) {
    strips = larger(1, tokens_packed_a / larger(1, width * depth));
    lines =
        larger(1, (op.outputs_first ? tokens_outputs : tokens_gathered_outputs) / op.line_extent);
    outputs = (lines * op.line_extent + 7) / 8 * 8;
    std::int64_t most = 0;
    for (std::int64_t line = 0; line < op.lines; ++line) {
      most = larger(most, op.pointers[line + 1] - op.pointers[line]);
    }
    runs = most * lines;
    gathered = op.outputs_first ? 0 : runs * op.line_extent * op.reduce_extent;
  }

  std::int64_t width;     // tokens of a strip
  std::int64_t depth;     // features of packed A
  std::int64_t strips;    // that are packed at a time
  std::int64_t lines;     // of a group, at most
  std::int64_t outputs;   // of them
  std::int64_t runs;      // of them
  std::int64_t gathered;  // elements of W that are brought together

  std::int64_t floats() const { return strips * width * depth + 2 * outputs * width + gathered; }
  std::size_t bytes() const {
    return static_cast<std::size_t>(floats()) * sizeof(float) +
           static_cast<std::size_t>(runs) * sizeof(Run);
  }
};

/// Some lines and tokens, in tiles of one width.
template <class V, class Tile>
class TokensProduct {
 public:
  TokensProduct(const Operands& operands, Range tokens, void* scratch)
      : op_(operands), shape_(operands, Tile::width), tokens_(tokens) {
    a_ = static_cast<float*>(scratch);
    c_ = a_ + shape_.strips * shape_.width * shape_.depth;
    sums_ = c_ + shape_.outputs * shape_.width;
    w_ = sums_ + shape_.outputs * shape_.width;
    runs_ = reinterpret_cast<Run*>(w_ + shape_.gathered);
  }

  void run(Range lines) {
    const std::int64_t step = shape_.strips * shape_.width;
    for (std::int64_t first = tokens_.begin; first < tokens_.end; first += step) {
      const Range part{first, smaller(first + step, tokens_.end)};
      for_each_strip(part, [&](Range strip) {
        pack_transposed(static_cast<const float*>(op_.a) + strip.begin * op_.lda, op_.lda,
                        strip.end - strip.begin, op_.reduced, shape_.width,
                        packed(strip.begin - first));
      });
      for (std::int64_t line = lines.begin; line < lines.end; line += shape_.lines) {
        const Range group{line, smaller(line + shape_.lines, lines.end)};
        list_runs(group);
        for_each_strip(part, [&](Range strip) {
          multiply(group, packed(strip.begin - first));
          store(group, strip);
        });
      }
    }
  }

 private:
  template <class Body>
  void for_each_strip(Range tokens, const Body& body) const {
    for (std::int64_t t = tokens.begin; t < tokens.end; t += shape_.width) {
      body(Range{t, smaller(t + shape_.width, tokens.end)});
    }
  }
  float* packed(std::int64_t token) const { return a_ + token * shape_.depth; }
  std::int64_t valid_outputs(Range lines) const {
    return smaller(lines.end * op_.line_extent, op_.outputs) - lines.begin * op_.line_extent;
  }

  void list_runs(Range lines) {
    Run* run = runs_;
    for (std::int64_t i = op_.pointers[lines.begin]; i < op_.pointers[lines.end]; ++i) {
      const std::int64_t size = op_.line_extent * op_.reduce_extent;
      run->a = op_.ids[i] * size;
      if (!op_.outputs_first) {
        // Blocks of a column lie far apart, and all strips of tokens read them.
        const float* const from = static_cast<const float*>(op_.values) + run->a;
        run->a = (run - runs_) * size;
        float* const to = w_ + run->a;
        for (std::int64_t e = 0; e < size; ++e) to[e] = from[e];
      }
      run->b_row = op_.indices[i] * op_.reduce_extent;
      run->length = smaller(op_.reduce_extent, op_.reduced - run->b_row);
      ++run;
    }
  }

  /// Sums of all outputs of the lines, tokens along the rows of c_.
  void multiply(Range lines, const float* a) {
    start(lines);
    TileArgs args;
    args.runs = runs_;
    args.b = a;
    args.ldb = shape_.width;
    args.lda = op_.outputs_first ? op_.reduce_extent : op_.line_extent;
    args.ldc = shape_.width;
    args.start = nullptr;
    float* c = c_;
    for (std::int64_t line = lines.begin; line < lines.end; ++line) {
      args.n_runs = op_.pointers[line + 1] - op_.pointers[line];
      const std::int64_t valid = smaller(op_.line_extent, op_.outputs - line * op_.line_extent);
      const std::int64_t tiles = (valid + Tile::most_rows - 1) / Tile::most_rows;
      for (std::int64_t i = 0; i < tiles; ++i) {
        const std::int64_t o = valid * i / tiles;
        args.a = op_.outputs_first ? static_cast<const float*>(op_.values) + o * args.lda : w_ + o;
        args.c = c + o * shape_.width;
        Tile::run(valid * (i + 1) / tiles - o, args);
      }
      args.runs += args.n_runs;
      c += op_.line_extent * shape_.width;
    }
  }

  /// Sums start with the bias.
  void start(Range lines) {
    const float* const bias = static_cast<const float*>(op_.bias);
    const std::int64_t first = lines.begin * op_.line_extent;
    for (std::int64_t o = 0; o < valid_outputs(lines); ++o) {
      const typename V::Float value = V::set(bias != nullptr ? bias[first + o] : 0.0f);
      for (std::int64_t t = 0; t < shape_.width; t += V::lanes) {
        V::store(c_ + o * shape_.width + t, value);
      }
    }
  }

  void store(Range lines, Range tokens) {
    const std::int64_t valid = valid_outputs(lines);
    pack_transposed(c_, shape_.width, valid, tokens.end - tokens.begin, shape_.outputs, sums_);
    finish<V, float>(op_, tokens, lines.begin * op_.line_extent, valid, sums_, shape_.outputs);
  }

  const Operands& op_;
  const TokensShape shape_;
  const Range tokens_;
  float* a_;     // strips of (reduced, width)
  float* c_;     // (outputs, width)
  float* sums_;  // (width, outputs)
  float* w_;     // blocks of the lines of a group
  Run* runs_;
};

/// Calls body(Tile()) with the tile for a product of this many tokens: vectors that the tokens
/// fill, and enough sums for the latency of FMA, but no more A than fits into L2.
template <class V, ALayout layout, class Body>
auto with_tile(const Operands& op, std::int64_t tokens, const Body& body) {
  if (tokens <= V::lanes) return body(TokenTiles<V, 1, layout>());
  if (tokens <= 2 * V::lanes || 3 * V::lanes * op.reduced > tokens_packed_a) {
    return body(TokenTiles<V, 2, layout>());
  }
  if (op.line_extent == 1) return body(TokenTiles<V, 12, layout>());
  if (op.line_extent <= V::accumulators / 6) return body(TokenTiles<V, 6, layout>());
  return body(TokenTiles<V, 3, layout>());
}

template <class V, class Body>
auto with_tile(const Operands& op, std::int64_t tokens, const Body& body) {
  return op.outputs_first ? with_tile<V, ALayout::row_major>(op, tokens, body)
                          : with_tile<V, ALayout::k_major>(op, tokens, body);
}

template <class V>
void tokens_block(const Operands& op, Range lines, Range tokens, void* scratch) {
  with_tile<V>(op, tokens.end - tokens.begin,
               [&]<class Tile>(Tile) { TokensProduct<V, Tile>(op, tokens, scratch).run(lines); });
}

/// Enough for any number of tokens.
template <class V>
std::size_t tokens_scratch_bytes(const Operands& op) {
  std::size_t bytes = 0;
  for (const std::int64_t tokens : {V::lanes, 2 * V::lanes, 3 * V::lanes}) {
    const std::size_t part = with_tile<V>(
        op, tokens, [&]<class Tile>(Tile) { return TokensShape(op, Tile::width).bytes(); });
    bytes = part > bytes ? part : bytes;
  }
  return bytes;
}

}  // namespace
}  // namespace block_sparse::cpu::spmm
