// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/micro_kernel.h"
#include "cpu/simd/avx512_bf16.h"
#include "cpu/simd/elements.h"
#include "cpu/simd/pairs.h"
#include "cpu/spmm/ends.h"
#include "cpu/spmm/spmm.h"

/// SpMM of bf16 taken in pairs of reduced features. Included by one source per instruction set,
/// with tiles of its own, see RegisterTiles.
namespace block_sparse::cpu::spmm {
namespace {

constexpr std::int64_t pairs_outputs = 64;  // whose sums wait for the activation
/// Tokens whose A stays in L2 while lines pass by.
constexpr std::int64_t pairs_panel = 128;

/// Followed by a run for each block that a line may have.
struct PairsScratch {
  alignas(64) float c[48 * pairs_outputs];  // of the tallest tile
  alignas(64) float start[pairs_outputs];

  Run* runs() { return reinterpret_cast<Run*>(this + 1); }
};

inline std::size_t pairs_scratch_bytes(const PairsOperands& op) {
  const std::int64_t blocks = 2 * op.width / op.reduce_extent;
  return sizeof(PairsScratch) + static_cast<std::size_t>(blocks) * sizeof(Run);
}

/// Outputs that one tile covers, from output `o` of a line on.
inline std::int64_t pairs_strip(const Operands& op, std::int64_t o) {
  return op.line_extent - o >= 32 ? 32 : 16;
}

/// Strips (depth, 32 or 16) of a line, one behind the other.
inline float* packed_line(const PairsOperands& op, std::int64_t line) {
  return op.packed + (op.pointers[line] - op.first_packed) * op.block_words();
}

inline void pack_pairs(const PairsOperands& op, Range lines) {
  const std::int64_t ld = op.outputs_first ? op.reduce_extent : op.line_extent;
  const std::int64_t block_depth = op.reduce_extent / 2;
  for (std::int64_t line = lines.begin; line < lines.end; ++line) {
    const std::int64_t depth = (op.pointers[line + 1] - op.pointers[line]) * block_depth;
    const std::int64_t valid = smaller(op.line_extent, op.outputs - line * op.line_extent);
    std::int64_t done = 0;
    for (std::int64_t i = op.pointers[line]; i < op.pointers[line + 1]; ++i) {
      const Bf16* const block =
          static_cast<const Bf16*>(op.values) + op.ids[i] * op.line_extent * op.reduce_extent;
      const std::int64_t features =
          smaller(op.reduce_extent, op.reduced - op.indices[i] * op.reduce_extent);
      for (std::int64_t o = 0; o < valid; o += pairs_strip(op, o)) {
        const std::int64_t width = pairs_strip(op, o);
        float* const out = packed_line(op, line) + o * depth + done * width;
        if (op.outputs_first) {
          pair_columns(block + o * ld, ld, valid - o, features, block_depth, width, out);
        } else {
          interleave_rows(block + o, ld, features, valid - o, block_depth, width, out);
        }
      }
      done += block_depth;
    }
  }
}

/// y for some tokens and lines, with tiles of E.
template <class E>
class PairsProduct {
 public:
  PairsProduct(const PairsOperands& operands, PairsScratch& scratch, E& tiles)
      : op_(operands), s_(scratch), tiles_(tiles) {}

  void run(Range lines, Range tokens) {
    if (op_.line_extent >= 32) {
      run_panels<typename E::Pair>(lines, tokens);
    } else {
      run_panels<typename E::Single>(lines, tokens);
    }
  }

 private:
  template <class Tiles>
  void run_panels(Range lines, Range tokens) {
    constexpr std::int64_t panel = pairs_panel / Tiles::most_rows * Tiles::most_rows;
    for (std::int64_t t = tokens.begin; t < tokens.end; t += panel) {
      for (std::int64_t line = lines.begin; line < lines.end; ++line) {
        run_line<Tiles>(line, {t, smaller(t + panel, tokens.end)});
      }
    }
  }

  template <class Tiles>
  void run_line(std::int64_t line, Range tokens) {
    const std::int64_t block_depth = op_.reduce_extent / 2;
    const std::int64_t first = op_.pointers[line];
    n_runs_ = op_.pointers[line + 1] - first;
    for (std::int64_t i = 0; i < n_runs_; ++i) {
      s_.runs()[i] = {op_.indices[first + i] * block_depth, i * block_depth, block_depth};
    }
    const std::int64_t outputs = smaller(op_.line_extent, op_.outputs - line * op_.line_extent);
    const std::int64_t count = tokens.end - tokens.begin;
    for (std::int64_t o = 0; o < outputs; o += pairs_outputs) {
      const std::int64_t output = line * op_.line_extent + o;
      const std::int64_t valid = smaller(pairs_outputs, outputs - o);
      load_bias<Avx512, Bf16>(op_, output, valid, pairs_outputs, s_.start);
      for (std::int64_t i = 0; i < Tiles::count(count); ++i) {
        const Range rows{tokens.begin + Tiles::begin(count, i),
                         tokens.begin + Tiles::begin(count, i + 1)};
        fetch_results(rows, output);
        for (std::int64_t at = 0; at < valid; at += pairs_strip(op_, o + at)) {
          multiply(line, o, at, rows);
        }
        finish<Avx512Bf16, Bf16>(op_, rows, output, valid, s_.c, pairs_outputs);
      }
    }
  }

  /// They are going to be written, and come from afar.
  void fetch_results(Range rows, std::int64_t output) const {
    const Bf16* const y = static_cast<const Bf16*>(op_.y) + output;
    for (std::int64_t t = rows.begin; t < rows.end; ++t) __builtin_prefetch(y + t * op_.ldy, 1);
  }

  void multiply(std::int64_t line, std::int64_t first, std::int64_t at, Range rows) {
    const std::int64_t o = first + at;
    TileArgs args;
    args.a = static_cast<const float*>(op_.a) + rows.begin * op_.lda;
    args.lda = op_.lda;
    args.runs = s_.runs();
    args.n_runs = n_runs_;
    args.b = packed_line(op_, line) + o * n_runs_ * (op_.reduce_extent / 2);
    args.ldb = pairs_strip(op_, o);
    args.c = s_.c + at;
    args.ldc = pairs_outputs;
    args.start = s_.start + at;
    if (args.ldb == 32) {
      tiles_.pair(rows.end - rows.begin, args);
    } else {
      tiles_.single(rows.end - rows.begin, args);
    }
  }

  const PairsOperands& op_;
  PairsScratch& s_;
  E& tiles_;
  std::int64_t n_runs_ = 0;
};

template <class E>
void multiply_pairs(const PairsOperands& op, Range lines, Range tokens, void* scratch, E& tiles) {
  PairsProduct<E>(op, *static_cast<PairsScratch*>(scratch), tiles).run(lines, tokens);
}

}  // namespace
}  // namespace block_sparse::cpu::spmm
