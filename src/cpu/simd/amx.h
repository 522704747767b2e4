// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "cpu/micro_kernel.h"

/// Products of bf16 on the tiles of AMX: registers of up to 16 rows of 64 bytes. A tile of A has 16
/// rows and 8 or 16 words (see pairs.h), a tile of B as many words and 16 outputs, a tile
/// of C 16 rows and 16 outputs of f32.
namespace block_sparse::cpu {

/// The operand of ldtilecfg.
struct alignas(64) TileConfig {
  std::uint8_t palette = 0;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};
};

namespace {

/// The instructions. Whoever configures the tiles releases them: while they are in use, the
/// operating system has 8 KiB more to save.
struct AmxBf16 {
  static void configure(const TileConfig& config) { asm volatile("ldtilecfg %0" ::"m"(config)); }
  static void release() { asm volatile("tilerelease"); }
  /// Rows `stride` bytes apart.
  template <int tile>
  static void load(const float* from, std::int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(tile) : "memory");
  }
  template <int tile>
  static void store(float* to, std::int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(tile) : "memory");
  }
  /// c += a b
  template <int c, int a, int b>
  static void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
  }
  /// The line at `p`, which is going to be loaded.
  static void prefetch(const float* p) { __builtin_prefetch(p, 0, 3); }
};

/// Words of a tile of A where runs have `length`, a multiple of 8.
constexpr std::int64_t tile_words(std::int64_t length) { return length % 16 == 0 ? 16 : 8; }

/// Products of tiles for one thread, on the instructions I. A lies in tiles, each of which has its
/// rows one behind the other: those of 16 rows of A follow each other, lda words for each row.
template <class I>
class AmxTiles {
 public:
  /// Runs are multiples of `run` words long, and that of 8.
  explicit AmxTiles(std::int64_t run = 16) : words_(tile_words(run)) {}
  AmxTiles(const AmxTiles&) = delete;
  AmxTiles& operator=(const AmxTiles&) = delete;
  ~AmxTiles() {
    if (config_.palette != 0) I::release();
  }

  /// 32 outputs for up to 32 tokens: 2 x 2 tiles of C, each tile of A and B used twice.
  struct Pair {
    static constexpr std::int64_t most_rows = 32;
    static std::int64_t count(std::int64_t rows) { return (rows + most_rows - 1) / most_rows; }
    static std::int64_t begin(std::int64_t rows, std::int64_t index) {
      return smaller_of(rows, index * most_rows);
    }
  };
  /// 16 outputs for up to 48 tokens: 3 tiles of C and A, one of B.
  struct Single {
    static constexpr std::int64_t most_rows = 48;
    static std::int64_t count(std::int64_t rows) { return (rows + most_rows - 1) / most_rows; }
    static std::int64_t begin(std::int64_t rows, std::int64_t index) {
      return smaller_of(rows, index * most_rows);
    }
  };

  void pair(std::int64_t rows, const TileArgs& args) {
    configure(rows, 2);
    if (rows > 16) {
      two_by_two(args);
    } else {
      one_by_two(args);
    }
  }

  void single(std::int64_t rows, const TileArgs& args) {
    configure(rows, 1);
    if (rows > 32) {
      three_by_one<3>(args);
    } else if (rows > 16) {
      three_by_one<2>(args);
    } else {
      three_by_one<1>(args);
    }
  }

 private:
  static std::int64_t smaller_of(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

  // Tiles of a pair: C 0 to 3, row by row, A 4 and 5, B 6 and 7. Of a single: C 0 to 2, A 3 to 5,
  // B 6.
  void configure(std::int64_t rows, int vectors) {
    if (rows == rows_ && vectors == vectors_) return;
    rows_ = rows;
    vectors_ = vectors;
    config_ = TileConfig();
    config_.palette = 1;
    const int first_a = vectors == 2 ? 4 : 3;
    const int tiles = vectors == 2 ? 2 : 3;
    for (int i = 0; i < tiles; ++i) {
      // A tile that is not used has the shape of one that is.
      const std::int64_t left = rows - 16 * i;
      const std::int64_t height = left < 1 ? 1 : smaller_of(left, 16);
      set(first_a + i, height, words_);
      for (int j = 0; j < vectors; ++j) set(i * vectors + j, height, 16);
    }
    set(6, words_, 16);
    set(7, words_, 16);
    I::configure(config_);
  }
  void set(int tile, std::int64_t rows, std::int64_t words) {
    config_.rows[tile] = static_cast<std::uint8_t>(rows);
    config_.row_bytes[tile] = static_cast<std::uint16_t>(4 * words);
  }

  /// What C starts from, and how far apart its rows are: one row for all of them, or C itself.
  struct Start {
    const float* from;
    std::int64_t ld;
  };
  static Start start_of(const TileArgs& args) {
    return args.start != nullptr ? Start{args.start, 0} : Start{args.c, args.ldc};
  }

  void two_by_two(const TileArgs& args) const {
    const std::int64_t ldb = 4 * args.ldb, ldc = 4 * args.ldc;
    const auto [from, ld] = start_of(args);
    I::template load<0>(from, 4 * ld);
    I::template load<1>(from + 16, 4 * ld);
    I::template load<2>(from + 16 * ld, 4 * ld);
    I::template load<3>(from + 16 * ld + 16, 4 * ld);
    for_each_step(args, [&](const float* a, const float* b) {
      I::template load<6>(b, ldb);
      I::template load<4>(a, 4 * words_);
      I::template multiply<0, 4, 6>();
      I::template load<7>(b + 16, ldb);
      I::template multiply<1, 4, 7>();
      I::template load<5>(a + 16 * args.lda, 4 * words_);
      I::template multiply<2, 5, 6>();
      I::template multiply<3, 5, 7>();
    });
    I::template store<0>(args.c, ldc);
    I::template store<1>(args.c + 16, ldc);
    I::template store<2>(args.c + 16 * args.ldc, ldc);
    I::template store<3>(args.c + 16 * args.ldc + 16, ldc);
  }

  void one_by_two(const TileArgs& args) const {
    const std::int64_t ldb = 4 * args.ldb, ldc = 4 * args.ldc;
    const auto [from, ld] = start_of(args);
    I::template load<0>(from, 4 * ld);
    I::template load<1>(from + 16, 4 * ld);
    for_each_step(args, [&](const float* a, const float* b) {
      I::template load<4>(a, 4 * words_);
      I::template load<6>(b, ldb);
      I::template multiply<0, 4, 6>();
      I::template load<7>(b + 16, ldb);
      I::template multiply<1, 4, 7>();
    });
    I::template store<0>(args.c, ldc);
    I::template store<1>(args.c + 16, ldc);
  }

  template <int tiles>
  void three_by_one(const TileArgs& args) const {
    const std::int64_t ldb = 4 * args.ldb, ldc = 4 * args.ldc;
    const auto [from, ld] = start_of(args);
    I::template load<0>(from, 4 * ld);
    if constexpr (tiles > 1) I::template load<1>(from + 16 * ld, 4 * ld);
    if constexpr (tiles > 2) I::template load<2>(from + 32 * ld, 4 * ld);
    for_each_step(args, [&](const float* a, const float* b) {
      I::template load<6>(b, ldb);
      I::template load<3>(a, 4 * words_);
      I::template multiply<0, 3, 6>();
      if constexpr (tiles > 1) {
        I::template load<4>(a + 16 * args.lda, 4 * words_);
        I::template multiply<1, 4, 6>();
      }
      if constexpr (tiles > 2) {
        I::template load<5>(a + 32 * args.lda, 4 * words_);
        I::template multiply<2, 5, 6>();
      }
    });
    I::template store<0>(args.c, ldc);
    if constexpr (tiles > 1) I::template store<1>(args.c + 16 * args.ldc, ldc);
    if constexpr (tiles > 2) I::template store<2>(args.c + 32 * args.ldc, ldc);
  }

  /// Calls body(a, b) for each step of words_ reduced words.
  template <class Body>
  void for_each_step(const TileArgs& args, const Body& body) const {
    const Run* const end = args.runs + args.n_runs;
    for (const Run* run = args.runs; run != end; ++run) {
      const float* a = args.a + 16 * run->a;
      const float* b = args.b + run->b_row * args.ldb;
      for (std::int64_t k = 0; k < run->length; k += words_) {
        body(a, b);
        a += 16 * words_;
        b += words_ * args.ldb;
      }
    }
  }

  const std::int64_t words_;
  std::int64_t rows_ = 0;
  int vectors_ = 0;
  TileConfig config_;
};

}  // namespace
}  // namespace block_sparse::cpu
