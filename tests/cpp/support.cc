// SPDX-License-Identifier: Apache-2.0
#include "support.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <sstream>

#include "common/numeric.h"

namespace block_sparse::test {

std::int64_t draw(Random& random, std::int64_t low, std::int64_t high) {
  return std::uniform_int_distribution<std::int64_t>(low, high)(random);
}

PatternView PatternArrays::view() const {
  PatternView view;
  view.rows = shape.rows;
  view.cols = shape.cols;
  view.block_height = shape.block_height;
  view.block_width = shape.block_width;
  view.slots = slots;
  view.crow_indices = crow.data();
  view.col_indices = col.data();
  view.block_ids = ids.data();
  view.ccol_indices = ccol.data();
  view.row_indices = row.data();
  view.t_block_ids = t_ids.data();
  return view;
}

PatternArrays random_pattern(const Shape& shape, double density, std::int64_t spare_slots,
                             Random& random) {
  PatternArrays out{.shape = shape,
                    .slots = 0,
                    .crow = {0},
                    .col = {},
                    .ids = {},
                    .ccol = {},
                    .row = {},
                    .t_ids = {}};
  const PatternView extents = out.view();
  std::bernoulli_distribution keep(density);
  std::bernoulli_distribution empty_row(density < 1 ? 0.15 : 0.0);
  std::vector<std::int32_t> rows;
  for (std::int64_t r = 0; r < extents.n_block_rows(); ++r) {
    const bool empty = empty_row(random);
    for (std::int64_t c = 0; c < extents.n_block_cols(); ++c) {
      if (empty || !keep(random)) continue;
      rows.push_back(static_cast<std::int32_t>(r));
      out.col.push_back(static_cast<std::int32_t>(c));
    }
    out.crow.push_back(static_cast<std::int32_t>(out.col.size()));
  }
  const std::size_t blocks = out.col.size();
  out.slots = static_cast<std::int64_t>(blocks) + spare_slots;
  out.ids.resize(static_cast<std::size_t>(out.slots));
  std::iota(out.ids.begin(), out.ids.end(), 0);
  std::shuffle(out.ids.begin(), out.ids.end(), random);
  out.ids.resize(blocks);

  std::vector<std::size_t> by_column(blocks);
  std::iota(by_column.begin(), by_column.end(), std::size_t{0});
  std::stable_sort(by_column.begin(), by_column.end(),
                   [&](std::size_t a, std::size_t b) { return out.col[a] < out.col[b]; });
  for (std::int64_t c = 0; c <= extents.n_block_cols(); ++c) {
    out.ccol.push_back(static_cast<std::int32_t>(
        std::count_if(out.col.begin(), out.col.end(), [c](std::int32_t col) { return col < c; })));
  }
  for (const std::size_t i : by_column) {
    out.row.push_back(rows[i]);
    out.t_ids.push_back(out.ids[i]);
  }
  return out;
}

Matrix::Matrix(DataType type, std::int64_t rows, std::int64_t cols, std::int64_t stride)
    : type_(type),
      rows_(rows),
      cols_(cols),
      stride_(stride),
      // Nothing after the last row: a sanitizer sees a read beyond it.
      bytes_(rows == 0 || cols == 0
                 ? 0
                 : static_cast<std::size_t>((rows - 1) * stride + cols) * size_of(type)) {}

double Matrix::get(std::int64_t i) const {
  return with_type(type_, [&]<class T>(T*) -> double {
    return widen(reinterpret_cast<const T*>(bytes_.data())[i]);
  });
}

void Matrix::put(std::int64_t i, double value) {
  with_type(type_, [&]<class T>(T*) {
    reinterpret_cast<T*>(bytes_.data())[i] = narrow<T>(static_cast<Accumulator<T>>(value));
  });
}

void Matrix::fill_all(double value) {
  const auto count = static_cast<std::int64_t>(bytes_.size() / size_of(type_));
  for (std::int64_t i = 0; i < count; ++i) put(i, value);
}

void Matrix::fill_random(Random& random) {
  std::uniform_real_distribution<double> uniform(-1, 1);
  for (std::int64_t r = 0; r < rows_; ++r) {
    for (std::int64_t c = 0; c < cols_; ++c) set(r, c, uniform(random));
  }
}

std::vector<double> Matrix::numbers() const {
  std::vector<double> out;
  out.reserve(static_cast<std::size_t>(rows_ * cols_));
  for (std::int64_t r = 0; r < rows_; ++r) {
    for (std::int64_t c = 0; c < cols_; ++c) out.push_back(at(r, c));
  }
  return out;
}

bool Matrix::gaps_hold(double value) const {
  for (std::int64_t r = 0; r + 1 < rows_; ++r) {
    for (std::int64_t c = cols_; c < stride_; ++c) {
      if (at(r, c) != value) return false;
    }
  }
  return true;
}

namespace {

/// Calls body(slot, block row, block column) for each stored block.
template <class Body>
void for_each_block(const PatternArrays& pattern, Body&& body) {
  for (std::size_t r = 0; r + 1 < pattern.crow.size(); ++r) {
    for (std::int32_t i = pattern.crow[r]; i < pattern.crow[r + 1]; ++i) {
      const auto at = static_cast<std::size_t>(i);
      body(std::int64_t{pattern.ids[at]}, static_cast<std::int64_t>(r),
           std::int64_t{pattern.col[at]});
    }
  }
}

/// Calls body(row, column, slot, element) for each stored weight.
template <class Body>
void for_each_weight(const PatternArrays& pattern, Body&& body) {
  const Shape& s = pattern.shape;
  for_each_block(pattern, [&](std::int64_t slot, std::int64_t block_row, std::int64_t block_col) {
    for (std::int64_t h = 0; h < s.block_height; ++h) {
      const std::int64_t r = block_row * s.block_height + h;
      for (std::int64_t w = 0; w < s.block_width; ++w) {
        const std::int64_t c = block_col * s.block_width + w;
        if (r < s.rows && c < s.cols) body(r, c, slot, h * s.block_width + w);
      }
    }
  });
}

}  // namespace

Matrix random_values(DataType type, const PatternArrays& pattern, Random& random) {
  const std::int64_t elements = pattern.shape.block_height * pattern.shape.block_width;
  Matrix values(type, pattern.slots, elements, elements);
  values.fill_all(std::numeric_limits<double>::quiet_NaN());
  std::uniform_real_distribution<double> uniform(-1, 1);
  for_each_weight(pattern, [&](std::int64_t, std::int64_t, std::int64_t slot, std::int64_t e) {
    values.set(slot, e, uniform(random));
  });
  return values;
}

std::vector<Exact> exact_forward(const PatternArrays& pattern, const Matrix& x,
                                 const Matrix& values, const Matrix* bias) {
  const std::int64_t rows = pattern.shape.rows;
  const std::vector<double> x_numbers = x.numbers();
  std::vector<Exact> y(static_cast<std::size_t>(x.rows() * rows));
  for_each_weight(pattern, [&](std::int64_t r, std::int64_t c, std::int64_t slot, std::int64_t e) {
    const double weight = values.at(slot, e);
    for (std::int64_t t = 0; t < x.rows(); ++t) {
      y[static_cast<std::size_t>(t * rows + r)].add(
          x_numbers[static_cast<std::size_t>(t * x.cols() + c)], weight);
    }
  });
  if (bias == nullptr) return y;
  for (std::int64_t t = 0; t < x.rows(); ++t) {
    for (std::int64_t r = 0; r < rows; ++r) {
      y[static_cast<std::size_t>(t * rows + r)].add(bias->at(0, r), 1);
    }
  }
  return y;
}

std::vector<Exact> exact_input_gradient(const PatternArrays& pattern, const Matrix& dy,
                                        const Matrix& values) {
  const std::int64_t cols = pattern.shape.cols;
  const std::vector<double> dy_numbers = dy.numbers();
  std::vector<Exact> dx(static_cast<std::size_t>(dy.rows() * cols));
  for_each_weight(pattern, [&](std::int64_t r, std::int64_t c, std::int64_t slot, std::int64_t e) {
    const double weight = values.at(slot, e);
    for (std::int64_t t = 0; t < dy.rows(); ++t) {
      dx[static_cast<std::size_t>(t * cols + c)].add(
          dy_numbers[static_cast<std::size_t>(t * dy.cols() + r)], weight);
    }
  });
  return dx;
}

std::vector<Exact> exact_dense_gradient(const Matrix& dy, const Matrix& x) {
  const std::vector<double> dy_numbers = dy.numbers();
  const std::vector<double> x_numbers = x.numbers();
  const auto rows = static_cast<std::size_t>(dy.cols());
  const auto cols = static_cast<std::size_t>(x.cols());
  std::vector<Exact> out(rows * cols);
  for (std::size_t t = 0; t < static_cast<std::size_t>(x.rows()); ++t) {
    for (std::size_t r = 0; r < rows; ++r) {
      for (std::size_t c = 0; c < cols; ++c) {
        out[r * cols + c].add(dy_numbers[t * rows + r], x_numbers[t * cols + c]);
      }
    }
  }
  return out;
}

long double roundoff(DataType type) {
  switch (type) {
    case DataType::f64:
      return std::ldexp(1.0L, -53);
    case DataType::bf16:
      return std::ldexp(1.0L, -8);
    case DataType::f16:
      return std::ldexp(1.0L, -11);
    default:
      return std::ldexp(1.0L, -24);
  }
}

DataType accumulator_of(DataType type) {
  return type == DataType::f64 ? DataType::f64 : DataType::f32;
}

long double tolerance(const Exact& exact, DataType type, DataType out) {
  const long double summation =
      static_cast<long double>(exact.terms + 1) * roundoff(accumulator_of(type)) * exact.magnitude;
  // Half the distance of float16's subnormals, the coarsest of all.
  const long double subnormal = out == DataType::f16 ? std::ldexp(1.0L, -25) : 0.0L;
  return summation + roundoff(out) * (std::fabs(exact.value) + summation) + subnormal;
}

testing::AssertionResult close(double actual, long double expected, long double tolerance) {
  if (std::isnan(expected) ? std::isnan(actual)
                           : (actual == expected || (std::isfinite(expected) &&
                                                     std::fabs(actual - expected) <= tolerance))) {
    return testing::AssertionSuccess();
  }
  return testing::AssertionFailure()
         << "got " << actual << ", expected " << static_cast<double>(expected) << " within "
         << static_cast<double>(tolerance);
}

std::string to_string(const Shape& shape) {
  std::ostringstream out;
  out << '(' << shape.rows << ", " << shape.cols << ") in blocks of (" << shape.block_height << ", "
      << shape.block_width << ')';
  return out.str();
}

}  // namespace block_sparse::test
