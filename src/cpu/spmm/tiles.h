// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/micro_kernel.h"
#include "cpu/simd/elements.h"
#include "cpu/simd/packing.h"
#include "cpu/spmm/ends.h"
#include "cpu/spmm/spmm.h"

/// SpMM from register tiles. A line is worked off in groups of up to 64 outputs
/// and chunks of reduced features, so that a piece of W, packed as (reduced,
/// outputs) floats, stays in L2 while all tokens of a panel use it. Included by
/// one source per instruction set.
namespace block_sparse::cpu::spmm {
namespace {

constexpr std::int64_t group_outputs = 64;
constexpr std::int64_t packed_floats = 32 * 1024;  // 128 KiB, a quarter of a small L2
constexpr std::int64_t max_runs = 512;

template <class V>
struct Scratch {
  alignas(64) float packed[packed_floats];
  alignas(64) float c[V::panel * group_outputs];
  alignas(64) float start[group_outputs];
  Run runs[max_runs];
};

/// One group of outputs of one line, for all tokens of a panel.
template <class V, class T>
class Group {
 public:
  Group(const Operands& operands, std::int64_t line, std::int64_t first, Range tokens,
        Scratch<V>& scratch)
      : op_(operands), s_(scratch), tokens_(tokens), line_(line), first_(first) {
    width_ = smaller(group_outputs, op_.line_extent - first);
    valid_ = smaller(width_, op_.outputs - output());
    // The tile writes f32 and whole vectors; anything else goes through scratch.
    in_place_ = sizeof(T) == sizeof(float) && valid_ == width_;
    if (in_place_) {
      c_ = static_cast<float*>(op_.preactivation != nullptr ? op_.preactivation : op_.y) +
           tokens_.begin * op_.ldy + output();
      ldc_ = op_.ldy;
    } else {
      c_ = s_.c;
      ldc_ = group_outputs;
    }
  }

  void run() {
    load_bias<V, T>(op_, output(), valid_, width_, s_.start);
    Cursor at{op_.pointers[line_], 0};
    bool first_chunk = true;
    do {
      const std::int64_t n_runs = next_chunk(at);
      multiply(n_runs, first_chunk);
      first_chunk = false;
    } while (at.block < op_.pointers[line_ + 1]);
    finish<V, T>(op_, tokens_, output(), valid_, c_, ldc_);
  }

 private:
  std::int64_t output() const { return line_ * op_.line_extent + first_; }
  /// Outputs that one tile covers, from output `o` of the group.
  std::int64_t strip_width(std::int64_t o) const {
    return width_ - o >= 2 * V::lanes ? 2 * V::lanes : V::lanes;
  }
  std::int64_t chunk() const { return packed_floats / width_; }

  /// Lists and packs the next `chunk()` reduced features.
  std::int64_t next_chunk(Cursor& at) {
    std::int64_t n_runs = 0;
    std::int64_t depth = 0;
    while (at.block < op_.pointers[line_ + 1] && n_runs < max_runs && depth < chunk()) {
      const std::int64_t feature = op_.indices[at.block] * op_.reduce_extent;
      const std::int64_t extent = smaller(op_.reduce_extent, op_.reduced - feature);
      const std::int64_t length = smaller(extent - at.offset, chunk() - depth);
      Run& run = s_.runs[n_runs++];
      run.a = feature + at.offset;
      run.length = length;
      run.b_row = depth;
      pack(at, length, depth);
      depth += length;
      at.offset += length;
      if (at.offset == extent) at = {at.block + 1, 0};
    }
    return n_runs;
  }

  void pack(const Cursor& at, std::int64_t length, std::int64_t depth) {
    const std::int64_t ld = op_.outputs_first ? op_.reduce_extent : op_.line_extent;
    const T* block =
        static_cast<const T*>(op_.values) + op_.ids[at.block] * op_.line_extent * op_.reduce_extent;
    for (std::int64_t o = 0; o < valid_; o += strip_width(o)) {
      const std::int64_t width = strip_width(o);
      const std::int64_t valid = smaller(width, valid_ - o);
      float* out = s_.packed + o * chunk() + depth * width;
      if (op_.outputs_first) {
        pack_transposed(block + (first_ + o) * ld + at.offset, ld, valid, length, width, out);
      } else {
        pack_rows<V>(block + at.offset * ld + first_ + o, ld, length, valid, width, out);
      }
    }
  }

  void multiply(std::int64_t n_runs, bool first_chunk) {
    if (width_ >= 2 * V::lanes) {
      multiply_with<Pair>(n_runs, first_chunk);
    } else {
      multiply_with<Single>(n_runs, first_chunk);
    }
  }

  template <class Tiles>
  void multiply_with(std::int64_t n_runs, bool first_chunk) {
    const std::int64_t tokens = tokens_.end - tokens_.begin;
    for (std::int64_t i = 0; i < Tiles::count(tokens); ++i) {
      // A tile of tokens goes through all strips while its part of A is in L1.
      const Range rows{Tiles::begin(tokens, i), Tiles::begin(tokens, i + 1)};
      for (std::int64_t o = 0; o < valid_; o += strip_width(o)) {
        strip(n_runs, first_chunk, rows, o);
      }
    }
  }

  void strip(std::int64_t n_runs, bool first_chunk, Range rows, std::int64_t o) {
    TileArgs args;
    args.a = op_.a + (tokens_.begin + rows.begin) * op_.lda;
    args.lda = op_.lda;
    args.runs = s_.runs;
    args.n_runs = n_runs;
    args.b = s_.packed + o * chunk();
    args.ldb = strip_width(o);
    args.c = c_ + rows.begin * ldc_ + o;
    args.ldc = ldc_;
    args.start = first_chunk ? s_.start + o : nullptr;
    if (strip_width(o) == 2 * V::lanes) {
      Pair::run(rows.end - rows.begin, args);
    } else {
      Single::run(rows.end - rows.begin, args);
    }
  }

  using Pair = Tiles<V, 2, ALayout::row_major>;
  using Single = Tiles<V, 1, ALayout::row_major>;

  const Operands& op_;
  Scratch<V>& s_;
  const Range tokens_;
  const std::int64_t line_;
  const std::int64_t first_;  // output of the line that the group starts with
  std::int64_t width_;        // outputs of the group, a multiple of 16
  std::int64_t valid_;        // of them, those that exist
  float* c_;
  std::int64_t ldc_;
  bool in_place_;
};

template <class V, class T>
void block_of(const Operands& operands, Range lines, Range tokens, void* scratch) {
  const std::int64_t count = tokens.end - tokens.begin;
  const std::int64_t panels = (count + V::panel - 1) / V::panel;
  for (std::int64_t i = 0; i < panels; ++i) {
    const Range panel{tokens.begin + count * i / panels, tokens.begin + count * (i + 1) / panels};
    for (std::int64_t line = lines.begin; line < lines.end; ++line) {
      for (std::int64_t first = 0; first < operands.line_extent; first += group_outputs) {
        if (line * operands.line_extent + first >= operands.outputs) break;
        Group<V, T>(operands, line, first, panel, *static_cast<Scratch<V>*>(scratch)).run();
      }
    }
  }
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
