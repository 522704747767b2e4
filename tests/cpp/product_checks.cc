// SPDX-License-Identifier: Apache-2.0
#include "product_checks.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "common/activation.h"

namespace block_sparse::test {
namespace {

constexpr double nan = std::numeric_limits<double>::quiet_NaN();

/// Whole and ragged edges, one block only, a matrix narrower than its block.
std::vector<Shape> edge_shapes(BlockShape block) {
  const auto [h, w] = block;
  return {{4 * h, 3 * w, h, w},
          {3 * h + (h + 1) / 2, 4 * w + (w + 2) / 3, h, w},
          {h, w, h, w},
          {(h + 1) / 2, (w + 1) / 2, h, w}};
}

Matrix input(DataType type, std::int64_t tokens, std::int64_t features, Random& random) {
  Matrix x(type, tokens, features, features + draw(random, 0, 5));
  x.fill_all(nan);
  x.fill_random(random);
  return x;
}

Matrix result(DataType of, std::int64_t rows, std::int64_t cols, std::int64_t gap) {
  Matrix y(of, rows, cols, cols + gap);
  y.fill_all(untouched);
  return y;
}

/// Calls body(pattern, tokens, random) for every shape, number of tokens and
/// a few densities.
template <class Body>
void for_each_problem(BlockShape block, const std::vector<std::int64_t>& token_counts,
                      Body&& body) {
  Random random(99);
  for (const Shape& shape : edge_shapes(block)) {
    for (const double density : {0.0, 0.4, 1.0}) {
      for (const std::int64_t tokens : token_counts) {
        const PatternArrays pattern = random_pattern(shape, density, draw(random, 0, 2), random);
        SCOPED_TRACE(to_string(shape) + ", " + std::to_string(tokens) + " tokens, density " +
                     std::to_string(density));
        body(pattern, tokens, random);
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

}  // namespace

Matrix random_matrix(DataType type, std::int64_t rows, std::int64_t cols, Random& random) {
  Matrix out(type, rows, cols, cols);
  out.fill_random(random);
  return out;
}

cpu::ForwardArgs forward_args(const PatternArrays& pattern, const Matrix& x, const Matrix& values,
                              const Matrix* bias, Activation activation, Matrix* preactivation,
                              Matrix* y) {
  cpu::ForwardArgs args;
  args.dtype = x.type();
  args.pattern = pattern.view();
  args.tokens = x.rows();
  args.x = x.data();
  args.ldx = x.stride();
  args.values = values.data();
  args.bias = bias == nullptr ? nullptr : bias->data();
  args.activation = activation;
  args.preactivation = preactivation == nullptr ? nullptr : preactivation->data();
  args.y = y->data();
  args.ldy = y->stride();
  return args;
}

cpu::InputGradientArgs input_gradient_args(const PatternArrays& pattern, const Matrix& dy,
                                           const Matrix& values, Matrix* dx) {
  cpu::InputGradientArgs args;
  args.dtype = dy.type();
  args.pattern = pattern.view();
  // The product needs the transposed arrays alone.
  args.pattern.crow_indices = nullptr;
  args.pattern.col_indices = nullptr;
  args.pattern.block_ids = nullptr;
  args.tokens = dy.rows();
  args.dy = dy.data();
  args.lddy = dy.stride();
  args.values = values.data();
  args.dx = dx->data();
  args.lddx = dx->stride();
  return args;
}

cpu::WeightGradientArgs weight_gradient_args(const PatternArrays& pattern, const Matrix& dy,
                                             const Matrix& x, bool accumulate, Matrix* dvalues) {
  cpu::WeightGradientArgs args;
  args.dtype = x.type();
  args.out_dtype = dvalues->type();
  args.pattern = pattern.view();
  args.tokens = x.rows();
  args.dy = dy.data();
  args.lddy = dy.stride();
  args.x = x.data();
  args.ldx = x.stride();
  args.accumulate = accumulate;
  args.dvalues = dvalues->data();
  return args;
}

cpu::BlockNormsArgs block_norms_args(const PatternArrays& pattern, const Matrix& dy,
                                     const Matrix& x, Matrix* norms) {
  cpu::BlockNormsArgs args;
  args.dtype = x.type();
  args.pattern = pattern.view();
  args.pattern.crow_indices = nullptr;
  args.pattern.col_indices = nullptr;
  args.pattern.block_ids = nullptr;
  args.tokens = x.rows();
  args.dy = dy.data();
  args.lddy = dy.stride();
  args.x = x.data();
  args.ldx = x.stride();
  args.norms = norms->data();
  return args;
}

/// (rows, cols) of exact sums against a matrix, gaps included.
void expect_close(const Matrix& actual, const std::vector<Exact>& expected, DataType type) {
  for (std::int64_t r = 0; r < actual.rows(); ++r) {
    for (std::int64_t c = 0; c < actual.cols(); ++c) {
      const Exact& exact = expected[static_cast<std::size_t>(r * actual.cols() + c)];
      ASSERT_TRUE(close(actual.at(r, c), exact.value, tolerance(exact, type, actual.type())))
          << "at (" << r << ", " << c << ")";
    }
  }
  ASSERT_TRUE(actual.gaps_hold(untouched));
}

std::vector<Target> weight_gradient_targets(const PatternArrays& pattern,
                                            const std::vector<Exact>& dense, const Matrix& before,
                                            bool accumulate) {
  const Shape& s = pattern.shape;
  std::vector<Target> targets(static_cast<std::size_t>(before.rows() * before.cols()));
  for (std::size_t i = 0; i < targets.size() && accumulate; ++i) {
    const auto at = static_cast<std::int64_t>(i);
    targets[i].exact.add(before.at(at / before.cols(), at % before.cols()), 1);
  }
  const PatternView view = pattern.view();
  for (std::int64_t r = 0; r < s.rows; ++r) {
    const std::int64_t row = r / s.block_height;
    for (std::int32_t i = view.crow_indices[row]; i < view.crow_indices[row + 1]; ++i) {
      for (std::int64_t w = 0; w < s.block_width; ++w) {
        const std::int64_t c = view.col_indices[i] * s.block_width + w;
        if (c >= s.cols) continue;
        const std::int64_t element = r % s.block_height * s.block_width + w;
        Target& target =
            targets[static_cast<std::size_t>(view.block_ids[i] * before.cols() + element)];
        const Exact& sum = dense[static_cast<std::size_t>(r * s.cols + c)];
        target.exact.value += sum.value;
        target.exact.magnitude += sum.magnitude;
        target.exact.terms += sum.terms;
        target.computed = true;
      }
    }
  }
  return targets;
}

void check_forward(const Product<cpu::ForwardArgs>& product, DataType type, BlockShape block,
                   const std::vector<std::int64_t>& token_counts) {
  for_each_problem(
      block, token_counts, [&](const PatternArrays& pattern, std::int64_t tokens, Random& random) {
        const Shape& s = pattern.shape;
        const Matrix x = input(type, tokens, s.cols, random);
        const Matrix values = random_values(type, pattern, random);
        const Matrix bias = input(type, 1, s.rows, random);
        const bool with_bias = draw(random, 0, 1) == 1;
        Matrix y = result(type, tokens, s.rows, 3);
        const auto args = forward_args(pattern, x, values, with_bias ? &bias : nullptr,
                                       Activation::none, nullptr, &y);
        ASSERT_TRUE(product(args, serial_executor()).ok());
        expect_close(y, exact_forward(pattern, x, values, with_bias ? &bias : nullptr), type);
      });
}

void check_input_gradient(const Product<cpu::InputGradientArgs>& product, DataType type,
                          BlockShape block, const std::vector<std::int64_t>& token_counts) {
  for_each_problem(
      block, token_counts, [&](const PatternArrays& pattern, std::int64_t tokens, Random& random) {
        const Shape& s = pattern.shape;
        const Matrix dy = input(type, tokens, s.rows, random);
        const Matrix values = random_values(type, pattern, random);
        Matrix dx = result(type, tokens, s.cols, 2);
        ASSERT_TRUE(product(input_gradient_args(pattern, dy, values, &dx), serial_executor()).ok());
        expect_close(dx, exact_input_gradient(pattern, dy, values), type);
      });
}

void check_weight_gradient(const Product<cpu::WeightGradientArgs>& product, DataType type,
                           BlockShape block, const std::vector<std::int64_t>& token_counts) {
  for_each_problem(
      block, token_counts, [&](const PatternArrays& pattern, std::int64_t tokens, Random& random) {
        const Shape& s = pattern.shape;
        const Matrix dy = input(type, tokens, s.rows, random);
        const Matrix x = input(type, tokens, s.cols, random);
        const std::int64_t elements = s.block_height * s.block_width;
        const std::vector<Exact> dense = exact_dense_gradient(dy, x);
        for (const bool accumulate : {false, true}) {
          for (const bool widened : {false, true}) {
            if (widened && accumulator_of(type) == type) continue;
            const DataType out = widened ? accumulator_of(type) : type;
            Matrix dvalues(out, pattern.slots, elements, elements);
            dvalues.fill_random(random);
            const Matrix before = dvalues;
            const auto args = weight_gradient_args(pattern, dy, x, accumulate, &dvalues);
            ASSERT_TRUE(product(args, serial_executor()).ok());
            const auto targets = weight_gradient_targets(pattern, dense, before, accumulate);
            for (std::int64_t slot = 0; slot < pattern.slots; ++slot) {
              for (std::int64_t e = 0; e < elements; ++e) {
                const Target& target = targets[static_cast<std::size_t>(slot * elements + e)];
                const long double allowed =
                    target.computed ? tolerance(target.exact, type, out) : 0;
                ASSERT_TRUE(close(dvalues.at(slot, e), target.exact.value, allowed))
                    << "slot " << slot << ", element " << e << ", accumulate " << accumulate;
              }
            }
          }
        }
      });
}

void check_block_norms(const Product<cpu::BlockNormsArgs>& product, DataType type, BlockShape block,
                       const std::vector<std::int64_t>& token_counts) {
  for_each_problem(
      block, token_counts, [&](const PatternArrays& pattern, std::int64_t tokens, Random& random) {
        const Shape& s = pattern.shape;
        const Matrix dy = input(type, tokens, s.rows, random);
        const Matrix x = input(type, tokens, s.cols, random);
        const PatternView view = pattern.view();
        const DataType out = accumulator_of(type);
        Matrix norms = result(out, view.n_block_rows(), view.n_block_cols(), 0);
        ASSERT_TRUE(product(block_norms_args(pattern, dy, x, &norms), serial_executor()).ok());
        const std::vector<Exact> dense = exact_dense_gradient(dy, x);
        for (std::int64_t r = 0; r < norms.rows(); ++r) {
          for (std::int64_t c = 0; c < norms.cols(); ++c) {
            // |norm(g + e) - norm(g)| <= norm(e), e the error of each sum.
            long double squares = 0;
            long double squared_errors = 0;
            for (std::int64_t h = r * s.block_height;
                 h < std::min((r + 1) * s.block_height, s.rows); ++h) {
              for (std::int64_t w = c * s.block_width;
                   w < std::min((c + 1) * s.block_width, s.cols); ++w) {
                const Exact& g = dense[static_cast<std::size_t>(h * s.cols + w)];
                const long double error = tolerance(g, type, out);
                squares += g.value * g.value;
                squared_errors += error * error;
              }
            }
            const long double norm = std::sqrt(squares);
            // Squares and their sum are taken in double.
            const long double elements = static_cast<long double>(s.block_height * s.block_width);
            const long double allowed = std::sqrt(squared_errors) + roundoff(out) * norm +
                                        (elements + 2) * roundoff(DataType::f64) * norm;
            ASSERT_TRUE(close(norms.at(r, c), norm, allowed)) << "block (" << r << ", " << c << ")";
          }
        }
      });
}

void check_activations(const Product<cpu::ForwardArgs>& product, DataType type, const Shape& shape,
                       std::int64_t tokens) {
  Random random(3);
  const PatternArrays pattern = random_pattern(shape, 0.6, 1, random);
  const Matrix x = random_matrix(type, tokens, shape.cols, random);
  const Matrix values = random_values(type, pattern, random);
  const Matrix bias = random_matrix(type, 1, shape.rows, random);
  const std::vector<Exact> sums = exact_forward(pattern, x, values, &bias);
  for (const Activation activation : {Activation::none, Activation::relu, Activation::gelu,
                                      Activation::gelu_tanh, Activation::silu}) {
    for (const bool keep : {false, true}) {
      Matrix y(type, tokens, shape.rows, shape.rows + 2);
      Matrix preactivation(type, tokens, shape.rows, shape.rows + 2);
      y.fill_all(untouched);
      preactivation.fill_all(untouched);
      const auto args =
          forward_args(pattern, x, values, &bias, activation, keep ? &preactivation : nullptr, &y);
      ASSERT_TRUE(product(args, serial_executor()).ok());
      if (keep) expect_close(preactivation, sums, type);
      ASSERT_TRUE(y.gaps_hold(untouched));
      for (std::int64_t t = 0; t < tokens; ++t) {
        for (std::int64_t r = 0; r < shape.rows; ++r) {
          const Exact& sum = sums[static_cast<std::size_t>(t * shape.rows + r)];
          const double expected = activate(activation, static_cast<double>(sum.value));
          // No activation is steeper than 1.13; its own value takes a few
          // roundings of numbers no larger than its argument.
          const DataType accumulator = accumulator_of(type);
          const long double before = tolerance(sum, accumulator, accumulator);
          const long double activated =
              1.13L * before + 16 * roundoff(accumulator) * std::fabs(sum.value);
          const long double subnormal = type == DataType::f16 ? std::ldexp(1.0L, -25) : 0.0L;
          const long double allowed =
              activated + roundoff(type) * (std::fabs(expected) + activated) + subnormal;
          ASSERT_TRUE(close(y.at(t, r), expected, allowed)) << name_of(activation);
        }
      }
    }
  }
}

}  // namespace block_sparse::test
