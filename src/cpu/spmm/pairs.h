// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/micro_kernel.h"
#include "cpu/simd/avx512.h"
#include "cpu/simd/elements.h"
#include "cpu/simd/pairs.h"
#include "cpu/spmm/ends.h"
#include "cpu/spmm/spmm.h"

/// SpMM of bf16 taken in pairs of reduced features. Packing W costs as much as using it for many
/// tokens, so as many lines as fit into L2 are packed, and then serve all tokens. Included by one
/// source per instruction set, with tiles of its own, see RegisterTiles.
namespace block_sparse::cpu::spmm {
namespace {

constexpr std::int64_t pairs_outputs = 64;              // of a group
constexpr std::int64_t pairs_words = 64 * 1024;         // 256 KiB
constexpr std::int64_t pairs_runs = pairs_words / 128;  // a block of 16 x 16 has 128 words
constexpr std::int64_t pairs_groups = 256;
/// Tokens whose A stays in L2 while groups of lines pass by.
constexpr std::int64_t pairs_panel = 128;

/// Up to pairs_outputs outputs of a line, and the part of its reduced features that is packed.
struct PairsGroup {
  std::int64_t line;
  std::int64_t first;   // output of the line
  std::int64_t width;   // outputs, a multiple of 16
  std::int64_t valid;   // of them, those that exist
  const float* packed;  // strips of (depth, 32 or 16)
  std::int64_t depth;   // words
  const Run* runs;
  std::int64_t n_runs;
};

struct PairsScratch {
  alignas(64) float packed[pairs_words];
  alignas(64) float c[pairs_panel * pairs_outputs];
  alignas(64) float start[pairs_outputs];
  Run runs[pairs_runs];
  PairsGroup groups[pairs_groups];
};

inline std::size_t pairs_scratch_bytes(const Operands&) { return sizeof(PairsScratch); }

/// Outputs that one tile covers, from output `o` of a group.
inline std::int64_t pairs_strip(const PairsGroup& group, std::int64_t o) {
  return group.width - o >= 32 ? 32 : 16;
}

template <class E>
class PairsProduct {
 public:
  PairsProduct(const Operands& operands, Range tokens, PairsScratch& scratch, E& tiles)
      : op_(operands), s_(scratch), tokens_(tokens), tiles_(tiles) {}

  /// y for outputs `first` and on of a line; some of it may be left to finish().
  void add(std::int64_t line, std::int64_t first) {
    PairsGroup group = group_of(line, first);
    const std::int64_t blocks = op_.pointers[line + 1] - op_.pointers[line];
    const std::int64_t words = blocks * op_.reduce_extent / 2 * group.width;
    if (n_groups_ == pairs_groups || words_ + words > pairs_words) finish();
    if (words > pairs_words) return in_chunks(group);
    Cursor at{op_.pointers[line], 0};
    pack(at, group);
    s_.groups[n_groups_++] = group;
  }

  void finish() {
    for_each_panel([&](Range panel) {
      for (std::int64_t i = 0; i < n_groups_; ++i) multiply(s_.groups[i], panel, true, true);
    });
    empty();
  }

 private:
  std::int64_t output(const PairsGroup& group) const {
    return group.line * op_.line_extent + group.first;
  }

  PairsGroup group_of(std::int64_t line, std::int64_t first) const {
    PairsGroup group{};
    group.line = line;
    group.first = first;
    group.width = smaller(pairs_outputs, op_.line_extent - first);
    group.valid = smaller(group.width, op_.outputs - output(group));
    return group;
  }

  void empty() { n_groups_ = words_ = n_runs_ = 0; }

  template <class Body>
  void for_each_panel(const Body& body) const {
    const std::int64_t count = tokens_.end - tokens_.begin;
    const std::int64_t panels = (count + pairs_panel - 1) / pairs_panel;
    for (std::int64_t i = 0; i < panels; ++i) {
      body(Range{tokens_.begin + count * i / panels, tokens_.begin + count * (i + 1) / panels});
    }
  }

  /// A group too large for the scratch: packed again for each panel.
  void in_chunks(PairsGroup& group) {
    for_each_panel([&](Range panel) {
      Cursor at{op_.pointers[group.line], 0};
      for (bool first = true; at.block < op_.pointers[group.line + 1]; first = false) {
        pack(at, group);
        multiply(group, panel, first, at.block == op_.pointers[group.line + 1]);
        empty();
      }
    });
  }

  /// Packs what there is room for.
  void pack(Cursor& at, PairsGroup& group) {
    const std::int64_t room = (pairs_words - words_) / group.width;
    const std::int64_t end = op_.pointers[group.line + 1];
    group.packed = s_.packed + words_;
    group.runs = s_.runs + n_runs_;
    // The depth of a strip is needed before its first block is packed.
    group.depth = smaller(room, (end - at.block) * op_.reduce_extent / 2 - at.offset / 2);
    group.n_runs = 0;
    for (std::int64_t depth = 0; depth < group.depth;) {
      Run& run = s_.runs[n_runs_++];
      ++group.n_runs;
      run.length = smaller((op_.reduce_extent - at.offset) / 2, group.depth - depth);
      run.a = (op_.indices[at.block] * op_.reduce_extent + at.offset) / 2;
      run.b_row = depth;
      pack_block(at, 2 * run.length, depth, group);
      depth += run.length;
      at.offset += 2 * run.length;
      if (at.offset == op_.reduce_extent) at = {at.block + 1, 0};
    }
    words_ += group.depth * group.width;
  }

  /// `length` reduced features of a block as words, zeros where there are none.
  void pack_block(const Cursor& at, std::int64_t length, std::int64_t depth,
                  const PairsGroup& group) {
    const std::int64_t feature = op_.indices[at.block] * op_.reduce_extent + at.offset;
    const std::int64_t left = op_.reduced - feature;
    const std::int64_t features = left < 0 ? 0 : smaller(length, left);
    const std::int64_t ld = op_.outputs_first ? op_.reduce_extent : op_.line_extent;
    const Bf16* const block = static_cast<const Bf16*>(op_.values) +
                              op_.ids[at.block] * op_.line_extent * op_.reduce_extent;
    for (std::int64_t o = 0; o < group.valid; o += pairs_strip(group, o)) {
      const std::int64_t width = pairs_strip(group, o);
      const std::int64_t valid = smaller(width, group.valid - o);
      float* const out = strip_of(group, o) + depth * width;
      if (op_.outputs_first) {
        pair_columns(block + (group.first + o) * ld + at.offset, ld, valid, features, length / 2,
                     width, out);
      } else {
        interleave_rows(block + at.offset * ld + group.first + o, ld, features, valid, length / 2,
                        width, out);
      }
    }
  }

  float* strip_of(const PairsGroup& group, std::int64_t o) const {
    return s_.packed + (group.packed - s_.packed) + o * group.depth;
  }

  /// The packed part of a group for a panel of tokens.
  void multiply(const PairsGroup& group, Range panel, bool first, bool last) const {
    if (group.width >= 32) {
      multiply_with<typename E::Pair>(group, panel, first, last);
    } else {
      multiply_with<typename E::Single>(group, panel, first, last);
    }
  }

  template <class Tiles>
  void multiply_with(const PairsGroup& group, Range panel, bool first, bool last) const {
    if (first) load_bias<Avx512, Bf16>(op_, output(group), group.valid, group.width, s_.start);
    const std::int64_t tokens = panel.end - panel.begin;
    for (std::int64_t i = 0; i < Tiles::count(tokens); ++i) {
      const Range rows{Tiles::begin(tokens, i), Tiles::begin(tokens, i + 1)};
      const Range of_y{panel.begin + rows.begin, panel.begin + rows.end};
      // Sums that are complete at once need no place that outlasts the tile.
      float* const c = s_.c + (first && last ? 0 : rows.begin * pairs_outputs);
      for (std::int64_t o = 0; o < group.valid; o += pairs_strip(group, o)) {
        TileArgs args;
        args.a = op_.a + of_y.begin * op_.lda;
        args.lda = op_.lda;
        args.runs = group.runs;
        args.n_runs = group.n_runs;
        args.b = strip_of(group, o);
        args.ldb = pairs_strip(group, o);
        args.c = c + o;
        args.ldc = pairs_outputs;
        args.start = first ? s_.start + o : nullptr;
        if (args.ldb == 32) {
          tiles_.pair(rows.end - rows.begin, args);
        } else {
          tiles_.single(rows.end - rows.begin, args);
        }
      }
      if (last) finish_sums(of_y, group, c);
    }
  }

  void finish_sums(Range of_y, const PairsGroup& group, const float* c) const {
    spmm::finish<Avx512, Bf16>(op_, of_y, output(group), group.valid, c, pairs_outputs);
  }

  const Operands& op_;
  PairsScratch& s_;
  const Range tokens_;
  E& tiles_;
  std::int64_t n_groups_ = 0;
  std::int64_t words_ = 0;
  std::int64_t n_runs_ = 0;
};

template <class E>
void pairs_block(const Operands& operands, Range lines, Range tokens, void* scratch, E& tiles) {
  PairsProduct<E> product(operands, tokens, *static_cast<PairsScratch*>(scratch), tiles);
  for (std::int64_t line = lines.begin; line < lines.end; ++line) {
    for (std::int64_t first = 0; first < operands.line_extent; first += pairs_outputs) {
      if (line * operands.line_extent + first >= operands.outputs) break;
      product.add(line, first);
    }
  }
  product.finish();
}

inline void stage_pairs(const void* in, DataType, std::int64_t n, std::int64_t width, float* out) {
  const auto bytes = static_cast<std::size_t>(n) * sizeof(Bf16);
  __builtin_memcpy(out, in, bytes);
  __builtin_memset(reinterpret_cast<char*>(out) + bytes, 0,
                   static_cast<std::size_t>(width) * sizeof(float) - bytes);
}

}  // namespace
}  // namespace block_sparse::cpu::spmm
