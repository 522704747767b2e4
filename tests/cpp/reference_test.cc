// SPDX-License-Identifier: Apache-2.0
#include "reference/reference.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "common/activation.h"
#include "support.h"

namespace block_sparse {
namespace {

using test::Exact;
using test::Matrix;
using test::PatternArrays;
using test::Random;
using test::Shape;

/// What the gaps between the rows of results are filled with.
constexpr double untouched = 12.0;
constexpr double nan = std::numeric_limits<double>::quiet_NaN();
constexpr double infinity = std::numeric_limits<double>::infinity();

constexpr std::int64_t token_counts[] = {0, 1, 3, 127, 300};

struct BlockShape {
  std::int64_t height;
  std::int64_t width;
};

using Parameters = std::tuple<DataType, BlockShape>;

std::string name_of_parameters(const testing::TestParamInfo<Parameters>& info) {
  const auto& [type, block] = info.param;
  return std::string(name_of(type)) + "_" + std::to_string(block.height) + "x" +
         std::to_string(block.width);
}

class ReferenceProducts : public testing::TestWithParam<Parameters> {
 protected:
  static DataType type() { return std::get<0>(GetParam()); }

  /// Whole and ragged edges, one block only, a matrix narrower than its block.
  static std::vector<Shape> shapes() {
    const auto [h, w] = std::get<1>(GetParam());
    return {{4 * h, 3 * w, h, w},
            {3 * h + (h + 1) / 2, 4 * w + (w + 2) / 3, h, w},
            {h, w, h, w},
            {(h + 1) / 2, (w + 1) / 2, h, w}};
  }

  static Matrix input(std::int64_t tokens, std::int64_t features, Random& random) {
    Matrix x(type(), tokens, features, features + test::draw(random, 0, 5));
    x.fill_all(nan);
    x.fill_random(random);
    return x;
  }

  static Matrix result(DataType of, std::int64_t rows, std::int64_t cols, std::int64_t gap) {
    Matrix y(of, rows, cols, cols + gap);
    y.fill_all(untouched);
    return y;
  }

  /// Calls body(pattern, tokens, random) for every shape, number of tokens and
  /// a few densities.
  template <class Body>
  static void for_each_problem(Body&& body) {
    Random random(99);
    for (const Shape& shape : shapes()) {
      for (const double density : {0.0, 0.4, 1.0}) {
        for (const std::int64_t tokens : token_counts) {
          const PatternArrays pattern =
              test::random_pattern(shape, density, test::draw(random, 0, 2), random);
          SCOPED_TRACE(to_string(shape) + ", " + std::to_string(tokens) + " tokens, density " +
                       std::to_string(density));
          body(pattern, tokens, random);
          if (testing::Test::HasFatalFailure()) return;
        }
      }
    }
  }
};

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
      ASSERT_TRUE(
          test::close(actual.at(r, c), exact.value, test::tolerance(exact, type, actual.type())))
          << "at (" << r << ", " << c << ")";
    }
  }
  ASSERT_TRUE(actual.gaps_hold(untouched));
}

TEST_P(ReferenceProducts, ForwardIsTheDenseProductOfTheStoredBlocks) {
  for_each_problem([](const PatternArrays& pattern, std::int64_t tokens, Random& random) {
    const Shape& s = pattern.shape;
    const Matrix x = input(tokens, s.cols, random);
    const Matrix values = test::random_values(type(), pattern, random);
    const Matrix bias = input(1, s.rows, random);
    const bool with_bias = test::draw(random, 0, 1) == 1;
    Matrix y = result(type(), tokens, s.rows, 3);
    const auto args = forward_args(pattern, x, values, with_bias ? &bias : nullptr,
                                   Activation::none, nullptr, &y);
    ASSERT_TRUE(reference::forward(args, serial_executor()).ok());
    expect_close(y, test::exact_forward(pattern, x, values, with_bias ? &bias : nullptr), type());
  });
}

TEST_P(ReferenceProducts, InputGradientIsTheProductWithTheTranspose) {
  for_each_problem([](const PatternArrays& pattern, std::int64_t tokens, Random& random) {
    const Shape& s = pattern.shape;
    const Matrix dy = input(tokens, s.rows, random);
    const Matrix values = test::random_values(type(), pattern, random);
    Matrix dx = result(type(), tokens, s.cols, 2);
    ASSERT_TRUE(
        reference::input_gradient(input_gradient_args(pattern, dy, values, &dx), serial_executor())
            .ok());
    expect_close(dx, test::exact_input_gradient(pattern, dy, values), type());
  });
}

/// What a slot element must hold: the block of dyᵀ x plus what was there, or
/// what was there alone (a spare slot or padding).
struct Target {
  Exact exact;
  bool computed = false;
};

std::vector<Target> weight_gradient_targets(const PatternArrays& pattern, const Matrix& dy,
                                            const Matrix& x, const Matrix& before,
                                            bool accumulate) {
  const Shape& s = pattern.shape;
  const std::vector<Exact> dense = test::exact_dense_gradient(dy, x);
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

TEST_P(ReferenceProducts, WeightGradientIsTheDenseGradientOfTheStoredBlocks) {
  for_each_problem([](const PatternArrays& pattern, std::int64_t tokens, Random& random) {
    const Shape& s = pattern.shape;
    const Matrix dy = input(tokens, s.rows, random);
    const Matrix x = input(tokens, s.cols, random);
    const std::int64_t elements = s.block_height * s.block_width;
    for (const bool accumulate : {false, true}) {
      for (const bool widened : {false, true}) {
        const DataType out = widened ? test::accumulator_of(type()) : type();
        Matrix dvalues(out, pattern.slots, elements, elements);
        dvalues.fill_random(random);
        const Matrix before = dvalues;
        const auto args = weight_gradient_args(pattern, dy, x, accumulate, &dvalues);
        ASSERT_TRUE(reference::weight_gradient(args, serial_executor()).ok());
        const auto targets = weight_gradient_targets(pattern, dy, x, before, accumulate);
        for (std::int64_t slot = 0; slot < pattern.slots; ++slot) {
          for (std::int64_t e = 0; e < elements; ++e) {
            const Target& target = targets[static_cast<std::size_t>(slot * elements + e)];
            const long double allowed =
                target.computed ? test::tolerance(target.exact, type(), out) : 0;
            ASSERT_TRUE(test::close(dvalues.at(slot, e), target.exact.value, allowed))
                << "slot " << slot << ", element " << e << ", accumulate " << accumulate;
          }
        }
      }
    }
  });
}

TEST_P(ReferenceProducts, BlockNormsAreThoseOfTheDenseGradient) {
  for_each_problem([](const PatternArrays& pattern, std::int64_t tokens, Random& random) {
    const Shape& s = pattern.shape;
    const Matrix dy = input(tokens, s.rows, random);
    const Matrix x = input(tokens, s.cols, random);
    const PatternView view = pattern.view();
    const DataType out = test::accumulator_of(type());
    Matrix norms = result(out, view.n_block_rows(), view.n_block_cols(), 0);
    ASSERT_TRUE(
        reference::block_norms(block_norms_args(pattern, dy, x, &norms), serial_executor()).ok());
    const std::vector<Exact> dense = test::exact_dense_gradient(dy, x);
    for (std::int64_t r = 0; r < norms.rows(); ++r) {
      for (std::int64_t c = 0; c < norms.cols(); ++c) {
        // |norm(g + e) - norm(g)| <= norm(e), e the error of each sum.
        long double squares = 0;
        long double squared_errors = 0;
        for (std::int64_t h = r * s.block_height; h < std::min((r + 1) * s.block_height, s.rows);
             ++h) {
          for (std::int64_t w = c * s.block_width; w < std::min((c + 1) * s.block_width, s.cols);
               ++w) {
            const Exact& g = dense[static_cast<std::size_t>(h * s.cols + w)];
            const long double error = test::tolerance(g, type(), out);
            squares += g.value * g.value;
            squared_errors += error * error;
          }
        }
        const long double norm = std::sqrt(squares);
        // Squares and their sum are taken in double.
        const long double elements = static_cast<long double>(s.block_height * s.block_width);
        const long double allowed = std::sqrt(squared_errors) + test::roundoff(out) * norm +
                                    (elements + 2) * test::roundoff(DataType::f64) * norm;
        ASSERT_TRUE(test::close(norms.at(r, c), norm, allowed))
            << "block (" << r << ", " << c << ")";
      }
    }
  });
}

INSTANTIATE_TEST_SUITE_P(
    AllTypesAndBlocks, ReferenceProducts,
    testing::Combine(testing::Values(DataType::f32, DataType::f64, DataType::bf16, DataType::f16),
                     testing::Values(BlockShape{1, 1}, BlockShape{3, 5}, BlockShape{5, 2},
                                     BlockShape{8, 8}, BlockShape{16, 16}, BlockShape{32, 16},
                                     BlockShape{1, 40})),
    name_of_parameters);

class ReferenceTypes : public testing::TestWithParam<DataType> {};
INSTANTIATE_TEST_SUITE_P(AllTypes, ReferenceTypes,
                         testing::Values(DataType::f32, DataType::f64, DataType::bf16,
                                         DataType::f16),
                         [](const testing::TestParamInfo<DataType>& tested) {
                           return std::string(name_of(tested.param));
                         });

Matrix random_matrix(DataType type, std::int64_t rows, std::int64_t cols, Random& random) {
  Matrix out(type, rows, cols, cols);
  out.fill_random(random);
  return out;
}

TEST_P(ReferenceTypes, ForwardAppliesTheActivationToTheUnroundedSum) {
  const DataType type = GetParam();
  Random random(3);
  const PatternArrays pattern = test::random_pattern({23, 34, 4, 6}, 0.6, 1, random);
  const Matrix x = random_matrix(type, 19, 34, random);
  const Matrix values = test::random_values(type, pattern, random);
  const Matrix bias = random_matrix(type, 1, 23, random);
  const std::vector<Exact> sums = test::exact_forward(pattern, x, values, &bias);
  for (const Activation activation : {Activation::none, Activation::relu, Activation::gelu,
                                      Activation::gelu_tanh, Activation::silu}) {
    for (const bool keep : {false, true}) {
      Matrix y(type, 19, 23, 25);
      Matrix preactivation(type, 19, 23, 25);
      y.fill_all(untouched);
      preactivation.fill_all(untouched);
      const auto args =
          forward_args(pattern, x, values, &bias, activation, keep ? &preactivation : nullptr, &y);
      ASSERT_TRUE(reference::forward(args, serial_executor()).ok());
      if (keep) expect_close(preactivation, sums, type);
      ASSERT_TRUE(y.gaps_hold(untouched));
      for (std::int64_t t = 0; t < 19; ++t) {
        for (std::int64_t r = 0; r < 23; ++r) {
          const Exact& sum = sums[static_cast<std::size_t>(t * 23 + r)];
          const double expected = activate(activation, static_cast<double>(sum.value));
          // No activation is steeper than 1.13; its own value takes a few
          // roundings of numbers no larger than its argument.
          const DataType accumulator = test::accumulator_of(type);
          const long double before = test::tolerance(sum, accumulator, accumulator);
          const long double activated =
              1.13L * before + 16 * test::roundoff(accumulator) * std::fabs(sum.value);
          const long double subnormal = type == DataType::f16 ? std::ldexp(1.0L, -25) : 0.0L;
          const long double allowed =
              activated + test::roundoff(type) * (std::fabs(expected) + activated) + subnormal;
          ASSERT_TRUE(test::close(y.at(t, r), expected, allowed)) << name_of(activation);
        }
      }
    }
  }
}

/// A problem large enough for several panels of tokens and chunks of lines.
struct Large {
  explicit Large(DataType type) {
    Random random(17);
    pattern = test::random_pattern({70, 90, 7, 9}, 0.5, 2, random);
    x = random_matrix(type, 700, 90, random);
    dy = random_matrix(type, 700, 70, random);
    values = test::random_values(type, pattern, random);
  }
  PatternArrays pattern;
  Matrix x;
  Matrix dy;
  Matrix values;
};

struct Results {
  Matrix y;
  Matrix dx;
  Matrix dvalues;
  Matrix norms;
};

Results run_all(const Large& problem, std::int64_t tokens, const Executor& executor) {
  const DataType type = problem.x.type();
  Results out{Matrix(type, tokens, 70, 70), Matrix(type, tokens, 90, 90),
              Matrix(type, problem.pattern.slots, 63, 63),
              Matrix(test::accumulator_of(type), 10, 10, 10)};
  auto forward = forward_args(problem.pattern, problem.x, problem.values, nullptr, Activation::gelu,
                              nullptr, &out.y);
  forward.tokens = tokens;
  EXPECT_TRUE(reference::forward(forward, executor).ok());
  auto input = input_gradient_args(problem.pattern, problem.dy, problem.values, &out.dx);
  input.tokens = tokens;
  EXPECT_TRUE(reference::input_gradient(input, executor).ok());
  auto weight = weight_gradient_args(problem.pattern, problem.dy, problem.x, false, &out.dvalues);
  weight.tokens = tokens;
  EXPECT_TRUE(reference::weight_gradient(weight, executor).ok());
  auto norms = block_norms_args(problem.pattern, problem.dy, problem.x, &out.norms);
  norms.tokens = tokens;
  EXPECT_TRUE(reference::block_norms(norms, executor).ok());
  return out;
}

TEST_P(ReferenceTypes, ResultsDoNotDependOnTheNumberOfThreads) {
  const Large problem(GetParam());
  for (const std::int64_t tokens : {1, 40, 700}) {
    const Results expected = run_all(problem, tokens, serial_executor());
    for (const int threads : {2, 3, 8}) {
      const auto pool = make_thread_pool(threads);
      const Results actual = run_all(problem, tokens, *pool);
      EXPECT_TRUE(actual.y.same_bits(expected.y)) << threads << " threads";
      EXPECT_TRUE(actual.dx.same_bits(expected.dx)) << threads << " threads";
      EXPECT_TRUE(actual.dvalues.same_bits(expected.dvalues)) << threads << " threads";
      EXPECT_TRUE(actual.norms.same_bits(expected.norms)) << threads << " threads";
    }
  }
}

TEST_P(ReferenceTypes, ATokenGetsTheSameBitsWhateverIsBesideIt) {
  const Large problem(GetParam());
  const Results all = run_all(problem, 700, serial_executor());
  const Results few = run_all(problem, 5, serial_executor());
  for (std::int64_t t = 0; t < 5; ++t) {
    for (std::int64_t r = 0; r < 70; ++r) ASSERT_EQ(all.y.at(t, r), few.y.at(t, r));
    for (std::int64_t c = 0; c < 90; ++c) ASSERT_EQ(all.dx.at(t, c), few.dx.at(t, c));
  }
}

TEST_P(ReferenceTypes, InfinitiesAndNanReachWhatDependsOnThem) {
  const DataType type = GetParam();
  Random random(23);
  for (const double bad : {infinity, -infinity, nan}) {
    const PatternArrays pattern = test::random_pattern({14, 21, 3, 4}, 0.5, 1, random);
    Matrix x = random_matrix(type, 37, 21, random);
    Matrix dy = random_matrix(type, 37, 14, random);
    Matrix values = test::random_values(type, pattern, random);
    x.set(5, 8, bad);
    dy.set(36, 2, bad);
    values.set(pattern.ids[0], 0, bad);
    // A stored zero times infinity is NaN, as in a dense product.
    values.set(pattern.ids[1], 0, 0.0);

    Matrix y(type, 37, 14, 14);
    ASSERT_TRUE(
        reference::forward(forward_args(pattern, x, values, nullptr, Activation::none, nullptr, &y),
                           serial_executor())
            .ok());
    expect_close(y, test::exact_forward(pattern, x, values, nullptr), type);

    Matrix dx(type, 37, 21, 21);
    ASSERT_TRUE(
        reference::input_gradient(input_gradient_args(pattern, dy, values, &dx), serial_executor())
            .ok());
    expect_close(dx, test::exact_input_gradient(pattern, dy, values), type);

    Matrix dvalues(type, pattern.slots, 12, 12);
    ASSERT_TRUE(reference::weight_gradient(weight_gradient_args(pattern, dy, x, false, &dvalues),
                                           serial_executor())
                    .ok());
    const auto targets = weight_gradient_targets(pattern, dy, x, dvalues, false);
    for (std::int64_t slot = 0; slot < pattern.slots; ++slot) {
      for (std::int64_t e = 0; e < 12; ++e) {
        const Target& target = targets[static_cast<std::size_t>(slot * 12 + e)];
        ASSERT_TRUE(test::close(dvalues.at(slot, e), target.exact.value,
                                test::tolerance(target.exact, type, type)));
      }
    }
  }
}

TEST_P(ReferenceTypes, ZeroBlocksGiveZero) {
  const DataType type = GetParam();
  Random random(29);
  const PatternArrays pattern = test::random_pattern({12, 12, 3, 3}, 1.0, 0, random);
  const Matrix x = random_matrix(type, 9, 12, random);
  Matrix values(type, pattern.slots, 9, 9);
  values.fill_all(0);
  Matrix y(type, 9, 12, 12);
  y.fill_all(untouched);
  ASSERT_TRUE(
      reference::forward(forward_args(pattern, x, values, nullptr, Activation::none, nullptr, &y),
                         serial_executor())
          .ok());
  for (std::int64_t t = 0; t < 9; ++t) {
    for (std::int64_t r = 0; r < 12; ++r) ASSERT_EQ(y.at(t, r), 0.0);
  }
}

TEST(Reference, BlocksLargerThanAPieceOfTheNorms) {
  Random random(31);
  // One block of 200 x 150 takes several pieces of 128 x 128.
  const PatternArrays pattern = test::random_pattern({350, 200, 200, 150}, 1.0, 0, random);
  const Matrix x = random_matrix(DataType::f64, 4, 200, random);
  const Matrix dy = random_matrix(DataType::f64, 4, 350, random);
  Matrix norms(DataType::f64, 2, 2, 2);
  ASSERT_TRUE(
      reference::block_norms(block_norms_args(pattern, dy, x, &norms), serial_executor()).ok());
  const std::vector<Exact> dense = test::exact_dense_gradient(dy, x);
  for (std::int64_t r = 0; r < 2; ++r) {
    for (std::int64_t c = 0; c < 2; ++c) {
      long double squares = 0;
      for (std::int64_t h = r * 200; h < std::min<std::int64_t>((r + 1) * 200, 350); ++h) {
        for (std::int64_t w = c * 150; w < std::min<std::int64_t>((c + 1) * 150, 200); ++w) {
          const long double g = dense[static_cast<std::size_t>(h * 200 + w)].value;
          squares += g * g;
        }
      }
      // 30,000 squares, each and each sum with one rounding.
      EXPECT_NEAR(norms.at(r, c), static_cast<double>(std::sqrt(squares)),
                  30010 * std::ldexp(1.0, -53) * static_cast<double>(std::sqrt(squares)));
    }
  }
}

}  // namespace
}  // namespace block_sparse
