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

/// How A lies in memory: `row_major`, A(m, k) = a[m * lda + k], or `k_major`,
/// A(m, k) = a[k * lda + m].
enum class ALayout { row_major, k_major };

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

/// Every element of C is summed in the order of k with one FMA each, whatever
/// the shape of the tile: how rows are cut into tiles never changes a result.
template <class V, int rows, int vectors, ALayout layout>
void tile(const TileArgs& args) {
  using Float = typename V::Float;
  constexpr bool row_major = layout == ALayout::row_major;
  const std::int64_t lda = args.lda;
  Float c[rows][vectors];
#pragma GCC unroll 32
  for (int m = 0; m < rows; ++m) {
    const float* from = args.start != nullptr ? args.start : args.c + m * args.ldc;
#pragma GCC unroll 2
    for (int j = 0; j < vectors; ++j) c[m][j] = V::load(from + j * V::lanes);
  }

  // One address register serves three rows: a, a + lda, a + 2 lda.
  constexpr int bases = row_major ? (rows + 2) / 3 : 1;
  const float* a[bases];
  const Run* const end = args.runs + args.n_runs;
  for (const Run* run = args.runs; run != end; ++run) {
#pragma GCC unroll 16
    for (int g = 0; g < bases; ++g) {
      a[g] = args.a + run->a + g * 3 * lda;
      opaque(a[g]);
    }
    const float* b = args.b + run->b_row * args.ldb;
    for (std::int64_t k = run->length; k > 0; --k) {
      Float row[vectors];
#pragma GCC unroll 2
      for (int j = 0; j < vectors; ++j) row[j] = V::load(b + j * V::lanes);
#pragma GCC unroll 32
      for (int m = 0; m < rows; ++m) {
        const Float x = V::broadcast(row_major ? a[m / 3] + (m % 3) * lda : a[0] + m);
#pragma GCC unroll 2
        for (int j = 0; j < vectors; ++j) c[m][j] = V::fma(x, row[j], c[m][j]);
      }
      b += args.ldb;
#pragma GCC unroll 16
      for (int g = 0; g < bases; ++g) a[g] += row_major ? 1 : lda;
    }
  }

#pragma GCC unroll 32
  for (int m = 0; m < rows; ++m) {
#pragma GCC unroll 2
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

}  // namespace
}  // namespace block_sparse::cpu
