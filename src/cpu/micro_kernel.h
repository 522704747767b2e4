// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <utility>

/// The one inner loop of all products: a tile C (rows, vectors) += A B, all of it
/// in registers, over a list of runs of reduced indices.
namespace block_sparse::cpu {
namespace {

/// Reduced indices k in [0, length): A(m, k) is `a` elements into A, B(k, :) is
/// row b_row + k of B.
struct Run {
  std::int64_t a;
  std::int64_t b_row;
  std::int64_t length;
};

/// Reduced indices that lie side by side in the chunks of a packed A: a cache line.
constexpr std::int64_t chunk = 16;

/// How A lies in memory: `row_major`, A(m, k) = a[m * lda + k]; `k_major`,
/// A(m, k) = a[k * lda + m]; `chunked`, chunks of (rows, 16), of which k / 16 counts
/// and k % 16 is a column, so that one address and constants reach all rows.
enum class ALayout { row_major, k_major, chunked };

struct TileArgs {
  const float* a;
  std::int64_t lda;
  const Run* runs;
  std::int64_t n_runs;
  const float* b;
  std::int64_t ldb;
  float* c;
  std::int64_t ldc;
  const float* start;  // first value of every row of C; null: what C holds
};

/// Hides from the compiler how a pointer was computed, so that it keeps the few
/// bases it is given instead of one index register for each row.
inline void opaque(const float*& pointer) { asm("" : "+r"(pointer)); }

/// C += the column of A at a, a + stride... times the row of B at b.
template <class V, int rows, int vectors, class ElementOfA>
[[gnu::always_inline]] inline void multiply_add(typename V::Float (&c)[rows][vectors],
                                                const float* b, const ElementOfA& a) {
  typename V::Float row[vectors];
#pragma GCC unroll 12
  for (int j = 0; j < vectors; ++j) row[j] = V::load(b + j * V::lanes);
#pragma GCC unroll 32
  for (int m = 0; m < rows; ++m) {
    if constexpr (vectors == 1 || V::broadcasts_operands) {
#pragma GCC unroll 12
      for (int j = 0; j < vectors; ++j) V::accumulate(c[m][j], a(m), row[j]);
    } else {
      const typename V::Float x = V::broadcast(a(m));
#pragma GCC unroll 12
      for (int j = 0; j < vectors; ++j) V::accumulate(c[m][j], x, row[j]);
    }
  }
}

/// C += A B over one run, A in rows or columns.
template <class V, int rows, int vectors, ALayout layout>
[[gnu::always_inline]] inline void add_run(typename V::Float (&c)[rows][vectors],
                                           const TileArgs& args, const Run& run) {
  // One address register serves three rows: a, a + lda, a + 2 lda.
  constexpr bool row_major = layout == ALayout::row_major;
  constexpr int bases = row_major ? (rows + 2) / 3 : 1;
  const std::int64_t lda = args.lda;
  const float* a[bases];
#pragma GCC unroll 16
  for (int g = 0; g < bases; ++g) {
    a[g] = args.a + run.a + g * 3 * lda;
    opaque(a[g]);
  }
  const float* b = args.b + run.b_row * args.ldb;
  for (std::int64_t k = run.length; k > 0; --k) {
    multiply_add<V>(c, b, [&](int m) __attribute__((always_inline)) {
      return row_major ? a[m / 3] + (m % 3) * lda : a[0] + m;
    });
    b += args.ldb;
#pragma GCC unroll 16
    for (int g = 0; g < bases; ++g) a[g] += row_major ? 1 : lda;
  }
}

/// The same where A is packed in chunks. A run starts with a chunk.
template <class V, int rows, int vectors>
[[gnu::always_inline]] inline void add_chunks(typename V::Float (&c)[rows][vectors],
                                              const TileArgs& args, const Run& run) {
  const float* a = args.a + run.a * rows;
  const float* b = args.b + run.b_row * args.ldb;
  std::int64_t left = run.length;
  for (; left >= chunk; left -= chunk) {
    // Few enough that the code of a tile stays in the cache of decoded instructions.
    for (int four = 0; four < chunk / 4; ++four) {
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        multiply_add<V>(c, b,
                        [&](int m) __attribute__((always_inline)) { return a + m * chunk + k; });
        b += args.ldb;
      }
      a += 4;
    }
    a += (rows - 1) * chunk;
  }
  for (; left > 0; --left) {
    multiply_add<V>(c, b, [&](int m) __attribute__((always_inline)) { return a + m * chunk; });
    b += args.ldb;
    ++a;
  }
}

/// Every element of C is summed in the order of k with one FMA each, whatever
/// the shape of the tile: how rows are cut into tiles never changes a result.
template <class V, int rows, int vectors, ALayout layout>
void tile(const TileArgs& args) {
  typename V::Float c[rows][vectors];
#pragma GCC unroll 32
  for (int m = 0; m < rows; ++m) {
    const float* from = args.start != nullptr ? args.start : args.c + m * args.ldc;
#pragma GCC unroll 12
    for (int j = 0; j < vectors; ++j) c[m][j] = V::load(from + j * V::lanes);
  }
  const Run* const end = args.runs + args.n_runs;
  for (const Run* run = args.runs; run != end; ++run) {
    if constexpr (layout == ALayout::chunked) {
      add_chunks<V>(c, args, *run);
    } else {
      add_run<V, rows, vectors, layout>(c, args, *run);
    }
  }
#pragma GCC unroll 32
  for (int m = 0; m < rows; ++m) {
#pragma GCC unroll 12
    for (int j = 0; j < vectors; ++j) V::store(args.c + m * args.ldc + j * V::lanes, c[m][j]);
  }
}

using TileFunction = void (*)(const TileArgs&);

/// tile<V, 1...>, tile<V, 2...> and so on: as many rows as the registers hold.
template <class V, int vectors, ALayout layout>
struct Tiles {
  static constexpr int most_rows = vectors == 2 ? V::rows_of_two : V::rows_of_one;

  /// Tiles of nearly equal height cover `rows`: a last tile of one row would use
  /// a twelfth of the registers.
  static std::int64_t count(std::int64_t rows) { return (rows + most_rows - 1) / most_rows; }
  static std::int64_t begin(std::int64_t rows, std::int64_t index) {
    return rows * index / count(rows);
  }

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

/// How the products multiply tiles of two vectors and of one.
template <class V, ALayout layout>
struct RegisterTiles {
  using Pair = Tiles<V, 2, layout>;
  using Single = Tiles<V, 1, layout>;
  static void pair(std::int64_t rows, const TileArgs& args) { Pair::run(rows, args); }
  static void single(std::int64_t rows, const TileArgs& args) { Single::run(rows, args); }
};

}  // namespace
}  // namespace block_sparse::cpu
