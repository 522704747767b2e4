// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "block_sparse/block_sparse.h"

/// Random problems and a naive, dense, extended-precision multiplication to
/// compare every product with.
namespace block_sparse::test {

using Random = std::mt19937_64;

/// Integer in [low, high].
std::int64_t draw(Random& random, std::int64_t low, std::int64_t high);

struct Shape {
  std::int64_t rows;
  std::int64_t cols;
  std::int64_t block_height;
  std::int64_t block_width;
};

/// The arrays of a pattern; change them freely before taking a view.
struct PatternArrays {
  Shape shape;
  std::int64_t slots = 0;
  std::vector<std::int32_t> crow, col, ids, ccol, row, t_ids;

  PatternView view() const;
};

/// Blocks are kept with probability `density`, some block rows hold none. Slots
/// are in random order, `spare_slots` of them free. The transpose is sorted
/// here, not taken from the library.
PatternArrays random_pattern(const Shape& shape, double density, std::int64_t spare_slots,
                             Random& random);

/// A matrix of any element type with a row stride. Elements between the rows
/// are set too: a product must neither read nor write them.
class Matrix {
 public:
  Matrix() = default;
  Matrix(DataType type, std::int64_t rows, std::int64_t cols, std::int64_t stride);

  double at(std::int64_t r, std::int64_t c) const { return get(r * stride_ + c); }
  void set(std::int64_t r, std::int64_t c, double value) { put(r * stride_ + c, value); }
  /// Every element, the gaps between rows included.
  void fill_all(double value);
  /// Uniform in [-1, 1]; the gaps stay as they are.
  void fill_random(Random& random);
  /// Without the gaps: (rows, cols).
  std::vector<double> numbers() const;
  /// Whether each gap still holds `value`.
  bool gaps_hold(double value) const;

  DataType type() const { return type_; }
  std::int64_t rows() const { return rows_; }
  std::int64_t cols() const { return cols_; }
  std::int64_t stride() const { return stride_; }
  /// Null if the matrix has no element, as an empty tensor's pointer may be.
  void* data() { return bytes_.empty() ? nullptr : bytes_.data(); }
  const void* data() const { return bytes_.empty() ? nullptr : bytes_.data(); }
  bool same_bits(const Matrix& other) const { return bytes_ == other.bytes_; }

 private:
  double get(std::int64_t i) const;
  void put(std::int64_t i, double value);

  DataType type_ = DataType::f32;
  std::int64_t rows_ = 0;
  std::int64_t cols_ = 0;
  std::int64_t stride_ = 0;
  std::vector<std::byte> bytes_;
};

/// (slots, block_height * block_width): random where the pattern stores
/// something, NaN in the padding of ragged blocks and in spare slots.
Matrix random_values(DataType type, const PatternArrays& pattern, Random& random);

/// A number and the sum of the magnitudes that it was summed from, which bounds
/// the error of any order of summation.
struct Exact {
  long double value = 0;
  long double magnitude = 0;
  std::int64_t terms = 0;

  void add(double a, double b) {
    const long double product = static_cast<long double>(a) * b;
    value += product;
    magnitude += product < 0 ? -product : product;
    ++terms;
  }
};

/// Over the stored blocks alone: an infinity times a block that is not stored
/// does not count. (tokens, rows) and (tokens, cols), row-major.
std::vector<Exact> exact_forward(const PatternArrays& pattern, const Matrix& x,
                                 const Matrix& values, const Matrix* bias);
std::vector<Exact> exact_input_gradient(const PatternArrays& pattern, const Matrix& dy,
                                        const Matrix& values);
/// (rows, cols) of dyᵀ x.
std::vector<Exact> exact_dense_gradient(const Matrix& dy, const Matrix& x);

/// Unit roundoff of a type.
long double roundoff(DataType type);
DataType accumulator_of(DataType type);

/// How far `exact` may be from a sum that was accumulated in
/// accumulator_of(type) and rounded to `out`: (terms + 1) u Σ|a b| for any
/// order of summation, u the roundoff of the accumulator, plus one rounding of
/// the result.
long double tolerance(const Exact& exact, DataType type, DataType out);

/// Equal within `tolerance`; infinities and NaN must be the same.
testing::AssertionResult close(double actual, long double expected, long double tolerance);

std::string to_string(const Shape& shape);

}  // namespace block_sparse::test
