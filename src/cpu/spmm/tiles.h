// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/micro_kernel.h"
#include "cpu/simd/elements.h"
#include "cpu/simd/packing.h"
#include "cpu/spmm/ends.h"
#include "cpu/spmm/spmm.h"

/// SpMM from register tiles. W of some lines is packed as (reduced, outputs) floats and used
/// by all tokens, a few tiles of them at a time, whose A is packed too: rows that lie a power
/// of two apart would share the places of a few of them in L1. Included by one source
/// per instruction set.
namespace block_sparse::cpu::spmm {
namespace {

/// A that is packed at a time: 256 KiB, half of a small L2.
constexpr std::int64_t packed_a = 64 * 1024;
/// W that is packed at a time: 4 MiB. It streams through the caches once for each packed part of
/// A; the larger it is, the less often A is packed again.
constexpr std::int64_t packed_w = 1024 * 1024;
/// Blocks that are listed at a time, where W is not packed.
constexpr std::int64_t listed_blocks = 64 * 1024;

/// How the work of a thread is cut.
template <class V>
struct Blocking {
  explicit Blocking(const Operands& op)
      : in_place(!op.outputs_first && op.dtype == DataType::f32),
        depth((op.reduced + chunk - 1) / chunk * chunk),
        tile_rows(op.line_extent >= 2 * V::lanes ? V::rows_of_two : V::rows_of_one),
        tiles(larger(1, packed_a / (tile_rows * depth))) {
    const std::int64_t size = op.line_extent * op.reduce_extent;
    blocks = in_place ? listed_blocks : packed_w / size;
    for (std::int64_t line = 0; line < op.lines; ++line) {
      blocks = larger(blocks, op.pointers[line + 1] - op.pointers[line]);
    }
    blocks = smaller(blocks, op.pointers[op.lines]);
    w_floats = in_place ? 0 : blocks * size;
  }

  bool in_place;           // W is used where it lies: outputs are along its rows
  std::int64_t depth;      // reduced features of packed A
  std::int64_t tile_rows;  // tokens of a tile, at most
  std::int64_t tiles;      // of tokens that are packed at a time
  std::int64_t blocks;     // of W that are packed or listed at a time, a line at least
  std::int64_t w_floats;
};

/// Some lines and tokens of a product.
template <class V, class T>
class Multiplication {
 public:
  Multiplication(const Operands& operands, Range lines, Range tokens, void* scratch)
      : op_(operands), blocking_(operands), lines_(lines), tokens_(tokens) {
    float* const floats = static_cast<float*>(scratch);
    a_ = floats;
    w_ = a_ + a_floats(blocking_);
    c_ = w_ + blocking_.w_floats;
    start_ = c_ + max_tile;
    runs_ = reinterpret_cast<Run*>(start_ + 2 * V::lanes);
    n_tiles_ = (count() + blocking_.tile_rows - 1) / blocking_.tile_rows;
  }
  static std::size_t scratch_bytes(const Operands& op) {
    const Blocking<V> blocking(op);
    const std::int64_t floats = a_floats(blocking) + blocking.w_floats + max_tile + 2 * V::lanes;
    return static_cast<std::size_t>(floats) * sizeof(float) +
           static_cast<std::size_t>(blocking.blocks) * sizeof(Run);
  }

  void run() {
    const bool once = n_tiles_ <= blocking_.tiles;
    if (once) pack_a({0, n_tiles_});
    for (std::int64_t line = lines_.begin; line < lines_.end;) {
      // Tokens that are all packed use a line while it is in L1.
      const Range group{line, once ? line + 1 : group_end(line)};
      pack_w(group);
      for (std::int64_t tile = 0; tile < n_tiles_; tile += blocking_.tiles) {
        const Range tiles{tile, smaller(tile + blocking_.tiles, n_tiles_)};
        if (!once) pack_a(tiles);
        multiply(group, tiles);
      }
      line = group.end;
    }
  }

 private:
  using Pair = Tiles<V, 2, ALayout::chunked>;
  using Single = Tiles<V, 1, ALayout::chunked>;
  static constexpr std::int64_t max_tile = V::rows_of_two * 2 * V::lanes;
  static_assert(V::rows_of_two * 2 >= V::rows_of_one);

  static std::int64_t a_floats(const Blocking<V>& blocking) {
    return blocking.tiles * blocking.tile_rows * blocking.depth;
  }
  std::int64_t count() const { return tokens_.end - tokens_.begin; }
  std::int64_t size() const { return op_.line_extent * op_.reduce_extent; }
  /// Tiles of nearly equal height: a last one of one row would use a twelfth of the registers.
  Range rows(std::int64_t tile) const {
    return {count() * tile / n_tiles_, count() * (tile + 1) / n_tiles_};
  }
  std::int64_t strip_width(std::int64_t o) const {
    return op_.line_extent - o >= 2 * V::lanes ? 2 * V::lanes : V::lanes;
  }
  std::int64_t group_end(std::int64_t line) const {
    const std::int64_t most = op_.pointers[line] + blocking_.blocks;
    do {
      ++line;
    } while (line < lines_.end && op_.pointers[line + 1] <= most);
    return line;
  }

  void pack_a(Range tiles) {
    const std::int64_t first = rows(tiles.begin).begin;
    for (std::int64_t tile = tiles.begin; tile < tiles.end; ++tile) {
      const Range part = rows(tile);
      const std::int64_t height = part.end - part.begin;
      float* const out = a_ + (part.begin - first) * blocking_.depth;
      for (std::int64_t m = 0; m < height; ++m) {
        const T* from = static_cast<const T*>(op_.a) + (tokens_.begin + part.begin + m) * op_.lda;
        float* to = out + m * chunk;
        std::int64_t k = 0;
        for (; k + chunk <= op_.reduced; k += chunk) {
#pragma GCC unroll 2
          for (std::int64_t i = 0; i < chunk; i += V::lanes) {
            V::store(to + k * height + i, V::load(from + k + i));
          }
        }
        // There is room for whole vectors in the last chunk, and nobody reads what is behind.
        for (std::int64_t i = 0; k + i < op_.reduced; i += V::lanes) {
          const auto left = static_cast<int>(smaller(op_.reduced - k - i, V::lanes));
          V::store(to + k * height + i, V::load_part(from + k + i, left));
        }
      }
    }
  }

  void pack_w(Range lines) {
    Run* run = runs_;
    std::int64_t line_start = 0;
    for (std::int64_t line = lines.begin; line < lines.end; ++line) {
      const std::int64_t line_depth =
          (op_.pointers[line + 1] - op_.pointers[line]) * op_.reduce_extent;
      std::int64_t depth = 0;
      for (std::int64_t i = op_.pointers[line]; i < op_.pointers[line + 1]; ++i) {
        run->a = op_.indices[i] * op_.reduce_extent;
        run->length = smaller(op_.reduce_extent, op_.reduced - run->a);
        run->b_row = blocking_.in_place ? op_.ids[i] * op_.reduce_extent : depth;
        if (!blocking_.in_place)
          pack_block(line, i, w_ + line_start, line_depth, depth, run->length);
        depth += op_.reduce_extent;
        ++run;
      }
      line_start += line_depth * op_.line_extent;
    }
  }

  void pack_block(std::int64_t line, std::int64_t i, float* out, std::int64_t line_depth,
                  std::int64_t depth, std::int64_t length) {
    const T* block = static_cast<const T*>(op_.values) + op_.ids[i] * size();
    const std::int64_t valid = valid_outputs(line);
    for (std::int64_t o = 0; o < valid; o += strip_width(o)) {
      const std::int64_t width = strip_width(o);
      float* to = out + o * line_depth + depth * width;
      if (op_.outputs_first) {
        pack_transposed(block + o * op_.reduce_extent, op_.reduce_extent, smaller(width, valid - o),
                        length, width, to);
      } else {
        pack_rows<V>(block + o, op_.line_extent, length, smaller(width, valid - o), width, to);
      }
    }
  }

  std::int64_t valid_outputs(std::int64_t line) const {
    return smaller(op_.line_extent, op_.outputs - line * op_.line_extent);
  }

  void multiply(Range lines, Range tiles) {
    TileArgs args;
    args.runs = runs_;
    std::int64_t line_start = 0;
    for (std::int64_t line = lines.begin; line < lines.end; ++line) {
      args.n_runs = op_.pointers[line + 1] - op_.pointers[line];
      const std::int64_t line_depth = args.n_runs * op_.reduce_extent;
      const std::int64_t valid = valid_outputs(line);
      for (std::int64_t o = 0; o < valid; o += strip_width(o)) {
        const std::int64_t width = strip_width(o);
        if (blocking_.in_place) {
          args.b = static_cast<const float*>(op_.values) + o;
          args.ldb = op_.line_extent;
        } else {
          args.b = w_ + line_start + o * line_depth;
          args.ldb = width;
        }
        strip(args, tiles, line * op_.line_extent + o, smaller(width, valid - o), width);
      }
      args.runs += args.n_runs;
      line_start += line_depth * op_.line_extent;
    }
  }

  /// All tiles of tokens with one strip of outputs.
  void strip(TileArgs args, Range tiles, std::int64_t output, std::int64_t valid,
             std::int64_t width) {
    load_bias<V, T>(op_, output, valid, width, start_);
    args.start = start_;
    const std::int64_t first = rows(tiles.begin).begin;
    // The tile writes f32 and whole vectors; anything else goes through scratch.
    const bool direct = sizeof(T) == sizeof(float) && valid == width;
    for (std::int64_t tile = tiles.begin; tile < tiles.end; ++tile) {
      const Range part = rows(tile);
      const Range tokens{tokens_.begin + part.begin, tokens_.begin + part.end};
      args.a = a_ + (part.begin - first) * blocking_.depth;
      if (direct) {
        args.c = static_cast<float*>(op_.preactivation != nullptr ? op_.preactivation : op_.y) +
                 tokens.begin * op_.ldy + output;
        args.ldc = op_.ldy;
      } else {
        args.c = c_;
        args.ldc = width;
      }
      // Rows of y are far apart, so hardware does not foresee that they will be written.
      for (std::int64_t m = 0; m < part.end - part.begin; ++m) {
        for (std::int64_t i = 0; i < width; i += chunk) {
          __builtin_prefetch(args.c + m * args.ldc + i, 1, 3);
        }
      }
      if (width == 2 * V::lanes) {
        Pair::run(part.end - part.begin, args);
      } else {
        Single::run(part.end - part.begin, args);
      }
      finish<V, T>(op_, tokens, output, valid, args.c, args.ldc);
    }
  }

  const Operands& op_;
  const Blocking<V> blocking_;
  const Range lines_;
  const Range tokens_;
  std::int64_t n_tiles_;
  float* a_;      // tiles of A, each in chunks
  float* w_;      // lines of W, each as strips of (reduced, width)
  float* c_;      // a tile that cannot be formed in its place
  float* start_;  // bias of a strip
  Run* runs_;
};

template <class V, class T>
void block_of(const Operands& operands, Range lines, Range tokens, void* scratch) {
  Multiplication<V, T>(operands, lines, tokens, scratch).run();
}

template <class V>
std::size_t scratch_bytes(const Operands& operands) {
  return Multiplication<V, float>::scratch_bytes(operands);
}

template <class V>
void block(const Operands& operands, Range lines, Range tokens, void* scratch) {
  switch (operands.dtype) {
    case DataType::f32:
      return block_of<V, float>(operands, lines, tokens, scratch);
    case DataType::bf16:
      return block_of<V, Bf16>(operands, lines, tokens, scratch);
    case DataType::f16:
      return block_of<V, F16>(operands, lines, tokens, scratch);
    case DataType::f64:
      return;  // refused before
  }
}

}  // namespace
}  // namespace block_sparse::cpu::spmm
