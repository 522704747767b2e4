// SPDX-License-Identifier: Apache-2.0
#include "reference/reference.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "product_checks.h"

namespace block_sparse {
namespace {

using test::BlockShape;
using test::Exact;
using test::Matrix;
using test::PatternArrays;
using test::Random;
using test::random_matrix;

constexpr double nan = std::numeric_limits<double>::quiet_NaN();
constexpr double infinity = std::numeric_limits<double>::infinity();

const std::vector<std::int64_t> token_counts = {0, 1, 3, 127, 300};

using Parameters = std::tuple<DataType, BlockShape>;

std::string name_of_parameters(const testing::TestParamInfo<Parameters>& info) {
  const auto& [type, block] = info.param;
  return std::string(name_of(type)) + "_" + std::to_string(block.height) + "x" +
         std::to_string(block.width);
}

class ReferenceProducts : public testing::TestWithParam<Parameters> {
 protected:
  static DataType type() { return std::get<0>(GetParam()); }
  static BlockShape block() { return std::get<1>(GetParam()); }
};

TEST_P(ReferenceProducts, ForwardIsTheDenseProductOfTheStoredBlocks) {
  test::check_forward(reference::forward, type(), block(), token_counts);
}

TEST_P(ReferenceProducts, InputGradientIsTheProductWithTheTranspose) {
  test::check_input_gradient(reference::input_gradient, type(), block(), token_counts);
}

TEST_P(ReferenceProducts, WeightGradientIsTheDenseGradientOfTheStoredBlocks) {
  test::check_weight_gradient(reference::weight_gradient, type(), block(), token_counts);
}

TEST_P(ReferenceProducts, BlockNormsAreThoseOfTheDenseGradient) {
  test::check_block_norms(reference::block_norms, type(), block(), token_counts);
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

TEST_P(ReferenceTypes, ForwardAppliesTheActivationToTheUnroundedSum) {
  test::check_activations(reference::forward, GetParam(), {23, 34, 4, 6}, 19);
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
  auto forward = test::forward_args(problem.pattern, problem.x, problem.values, nullptr,
                                    Activation::gelu, nullptr, &out.y);
  forward.tokens = tokens;
  EXPECT_TRUE(reference::forward(forward, executor).ok());
  auto input = test::input_gradient_args(problem.pattern, problem.dy, problem.values, &out.dx);
  input.tokens = tokens;
  EXPECT_TRUE(reference::input_gradient(input, executor).ok());
  auto weight =
      test::weight_gradient_args(problem.pattern, problem.dy, problem.x, false, &out.dvalues);
  weight.tokens = tokens;
  EXPECT_TRUE(reference::weight_gradient(weight, executor).ok());
  auto norms = test::block_norms_args(problem.pattern, problem.dy, problem.x, &out.norms);
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
    ASSERT_TRUE(reference::forward(
                    test::forward_args(pattern, x, values, nullptr, Activation::none, nullptr, &y),
                    serial_executor())
                    .ok());
    test::expect_close(y, test::exact_forward(pattern, x, values, nullptr), type);

    Matrix dx(type, 37, 21, 21);
    ASSERT_TRUE(reference::input_gradient(test::input_gradient_args(pattern, dy, values, &dx),
                                          serial_executor())
                    .ok());
    test::expect_close(dx, test::exact_input_gradient(pattern, dy, values), type);

    Matrix dvalues(type, pattern.slots, 12, 12);
    ASSERT_TRUE(reference::weight_gradient(
                    test::weight_gradient_args(pattern, dy, x, false, &dvalues), serial_executor())
                    .ok());
    const auto targets =
        test::weight_gradient_targets(pattern, test::exact_dense_gradient(dy, x), dvalues, false);
    for (std::int64_t slot = 0; slot < pattern.slots; ++slot) {
      for (std::int64_t e = 0; e < 12; ++e) {
        const test::Target& target = targets[static_cast<std::size_t>(slot * 12 + e)];
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
  y.fill_all(test::untouched);
  ASSERT_TRUE(reference::forward(
                  test::forward_args(pattern, x, values, nullptr, Activation::none, nullptr, &y),
                  serial_executor())
                  .ok());
  for (std::int64_t t = 0; t < 9; ++t) {
    for (std::int64_t r = 0; r < 12; ++r) ASSERT_EQ(y.at(t, r), 0.0);
  }
}

TEST_P(ReferenceTypes, AMatrixMayHaveNoRowsOrNoColumns) {
  const DataType type = GetParam();
  Random random(37);
  constexpr std::int64_t tokens = 70;
  const PatternArrays no_columns = test::random_pattern({14, 0, 3, 4}, 1.0, 0, random);
  const Matrix nothing(type, tokens, 0, 0);
  const Matrix values(type, 0, 12, 12);
  const Matrix bias = random_matrix(type, 1, 14, random);
  Matrix y = random_matrix(type, tokens, 14, random);
  const Matrix dy = y;
  ASSERT_TRUE(reference::forward(test::forward_args(no_columns, nothing, values, &bias,
                                                    Activation::none, nullptr, &y),
                                 serial_executor())
                  .ok());
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t r = 0; r < 14; ++r) ASSERT_EQ(y.at(t, r), bias.at(0, r));
  }
  Matrix none(type, 0, 12, 12);
  ASSERT_TRUE(
      reference::weight_gradient(test::weight_gradient_args(no_columns, dy, nothing, false, &none),
                                 serial_executor())
          .ok());
  ASSERT_TRUE(reference::block_norms(test::block_norms_args(no_columns, dy, nothing, &none),
                                     serial_executor())
                  .ok());

  const PatternArrays no_rows = test::random_pattern({0, 21, 3, 4}, 1.0, 0, random);
  Matrix dx = random_matrix(type, tokens, 21, random);
  ASSERT_TRUE(reference::input_gradient(test::input_gradient_args(no_rows, nothing, values, &dx),
                                        serial_executor())
                  .ok());
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t c = 0; c < 21; ++c) ASSERT_EQ(dx.at(t, c), 0.0);
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
      reference::block_norms(test::block_norms_args(pattern, dy, x, &norms), serial_executor())
          .ok());
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
