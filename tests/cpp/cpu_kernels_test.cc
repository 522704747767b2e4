// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <string>
#include <tuple>
#include <vector>

#include "cpu/dispatch.h"
#include "product_checks.h"

/// Every fast kernel of the table, called by name whatever dispatch would
/// choose. A kernel whose instructions the processor lacks is skipped visibly.
namespace block_sparse {
namespace {

using test::BlockShape;
using test::Matrix;
using test::PatternArrays;
using test::Random;

/// Whether a kernel has the tokens along its vectors: f32, and blocks of any shape.
template <class Args>
bool along_tokens(const cpu::Kernel<Args>& kernel) {
  return std::string(kernel.name).find("_tokens_") != std::string::npos;
}

/// The types that a kernel must take: one that has instructions for bf16 takes no other.
template <class Args>
std::vector<DataType> types_of(const cpu::Kernel<Args>& kernel) {
  if ((kernel.needs & (cpu::avx512_bf16 | cpu::amx_bf16)) != 0) return {DataType::bf16};
  if (along_tokens(kernel)) return {DataType::f32};
  return {DataType::f32, DataType::bf16, DataType::f16};
}

/// The blocks that a kernel must take.
template <class Args>
std::vector<BlockShape> blocks_of(const cpu::Kernel<Args>& kernel) {
  // One, two and a few rows have tiles of their own; 33: more rows than a tile.
  if (along_tokens(kernel)) return {{8, 8}, {16, 1}, {1, 16}, {2, 40}, {5, 3}, {33, 24}};
  // 48: strips of 32 and 16. 80: more outputs than a group of 64.
  return {{16, 16}, {32, 32}, {48, 16}, {16, 48}, {80, 16}, {32, 64}};
}

template <class Args>
const cpu::Kernel<Args>& kernel_named(const std::string& name) {
  for (const auto& kernel : cpu::kernels<Args>()) {
    if (kernel.name == name) return kernel;
  }
  return cpu::kernels<Args>().back();
}

/// A kernel as a product that calls nothing else: arguments that it refuses are a
/// failure, but for numbers of tokens that it is not made for, which the
/// reference takes over.
template <class Args>
test::Product<Args> product_of(const cpu::Kernel<Args>& kernel) {
  return [&kernel](const Args& args, const Executor& executor) {
    if (kernel.refuse(args) == nullptr) return kernel.run(args, executor);
    Args few = args;
    few.tokens = 1;
    EXPECT_EQ(kernel.refuse(few), nullptr) << kernel.name << ": " << kernel.refuse(args);
    return cpu::kernels<Args>().back().run(args, executor);
  };
}

/// All that decode kernels take, around the heights of tiles (6, 12, 14, 28) and around the tokens
/// of one, two and three vectors.
const std::vector<std::int64_t> token_counts = {0, 1, 2, 3, 4, 5, 6, 7, 13, 29, 33, 127, 130};

using Parameters = std::tuple<std::string, DataType, BlockShape>;

std::string name_of_parameters(const testing::TestParamInfo<Parameters>& info) {
  const auto& [kernel, type, block] = info.param;
  return kernel + "_" + name_of(type) + "_" + std::to_string(block.height) + "x" +
         std::to_string(block.width);
}

template <class Args>
class KernelTest : public testing::TestWithParam<Parameters> {
 protected:
  void SetUp() override {
    const cpu::Features missing = kernel().needs & ~cpu::detected_features();
    if (missing != 0) {
      GTEST_SKIP() << kernel().name << " needs " << cpu::to_string(missing)
                   << ", which this processor lacks";
    }
  }
  static const cpu::Kernel<Args>& kernel() { return kernel_named<Args>(std::get<0>(GetParam())); }
  static test::Product<Args> product() { return product_of(kernel()); }
  static DataType type() { return std::get<1>(GetParam()); }
  static BlockShape block() { return std::get<2>(GetParam()); }
};

template <class Args>
std::vector<Parameters> all_parameters() {
  std::vector<Parameters> out;
  for (const auto& kernel : cpu::kernels<Args>()) {
    if (kernel.needs == 0) continue;  // the reference has tests of its own
    for (const DataType type : types_of(kernel)) {
      for (const BlockShape block : blocks_of(kernel)) {
        out.emplace_back(kernel.name, type, block);
      }
    }
  }
  return out;
}

class ForwardKernels : public KernelTest<cpu::ForwardArgs> {};
class InputGradientKernels : public KernelTest<cpu::InputGradientArgs> {};
class WeightGradientKernels : public KernelTest<cpu::WeightGradientArgs> {};
class BlockNormsKernels : public KernelTest<cpu::BlockNormsArgs> {};

INSTANTIATE_TEST_SUITE_P(All, ForwardKernels, testing::ValuesIn(all_parameters<cpu::ForwardArgs>()),
                         name_of_parameters);
INSTANTIATE_TEST_SUITE_P(All, InputGradientKernels,
                         testing::ValuesIn(all_parameters<cpu::InputGradientArgs>()),
                         name_of_parameters);
INSTANTIATE_TEST_SUITE_P(All, WeightGradientKernels,
                         testing::ValuesIn(all_parameters<cpu::WeightGradientArgs>()),
                         name_of_parameters);
INSTANTIATE_TEST_SUITE_P(All, BlockNormsKernels,
                         testing::ValuesIn(all_parameters<cpu::BlockNormsArgs>()),
                         name_of_parameters);

TEST_P(ForwardKernels, AgreeWithTheExactProduct) {
  test::check_forward(product(), type(), block(), token_counts);
}

/// Where tiles could run as well.
TEST(TokensAlongVectors, ServeFewTokensOfBlocksOf16) {
  for (const auto& kernel : cpu::kernels<cpu::ForwardArgs>()) {
    if (!along_tokens(kernel) || (kernel.needs & ~cpu::detected_features()) != 0) continue;
    SCOPED_TRACE(kernel.name);
    for (const BlockShape block : {BlockShape{16, 32}, {48, 16}}) {
      test::check_forward(
          [&](const auto& args, const auto& executor) {
            EXPECT_EQ(kernel.refuse(args), nullptr);
            return kernel.run(args, executor);
          },
          DataType::f32, block, {12, 16, 29, 32});
    }
  }
}

TEST_P(ForwardKernels, ApplyTheActivationToTheUnroundedSum) {
  const auto [h, w] = block();
  for (const std::int64_t tokens : {5, 15}) {
    test::check_activations(product(), type(), {2 * h + 5, 3 * w, h, w}, tokens);
  }
}

TEST_P(InputGradientKernels, AgreeWithTheExactProduct) {
  test::check_input_gradient(product(), type(), block(), token_counts);
}

TEST_P(WeightGradientKernels, AgreeWithTheExactProduct) {
  test::check_weight_gradient(product(), type(), block(), {0, 1, 7, 130});
}

TEST_P(BlockNormsKernels, AgreeWithTheExactProduct) {
  test::check_block_norms(product(), type(), block(), {0, 1, 7, 130});
}

/// More tokens than are packed at a time.
TEST(TokensAlongVectors, AddUpChunksOfTheWeightGradient) {
  for (const auto& kernel : cpu::kernels<cpu::WeightGradientArgs>()) {
    if (!along_tokens(kernel) || (kernel.needs & ~cpu::detected_features()) != 0) continue;
    SCOPED_TRACE(kernel.name);
    test::check_weight_gradient(product_of(kernel), DataType::f32, {8, 8}, {1100});
    test::check_weight_gradient(product_of(kernel), DataType::f32, {16, 1}, {800});
  }
}

/// Calls body(product, type) for each kernel for blocks of 16 that this processor can run.
template <class Args, class Body>
void for_each_kernel(const Body& body) {
  for (const auto& kernel : cpu::kernels<Args>()) {
    if (kernel.needs == 0 || (kernel.needs & ~cpu::detected_features()) != 0) continue;
    if (along_tokens(kernel)) continue;
    SCOPED_TRACE(kernel.name);
    body(product_of(kernel), types_of(kernel).front());
  }
}

/// 4 x 3 blocks of 64 x 1024: a line is more than any scratch holds at once.
TEST(LongLines, AreWorkedOffInParts) {
  for_each_kernel<cpu::ForwardArgs>([](const auto& product, DataType type) {
    test::check_forward(product, type, {64, 1024}, {9, 130});
  });
  for_each_kernel<cpu::InputGradientArgs>([](const auto& product, DataType type) {
    test::check_input_gradient(product, type, {1024, 64}, {9, 130});
  });
}

/// More lines than are remembered at once, most of them short.
TEST(ShortLines, AreWorkedOffInGroups) {
  Random random(8);
  const PatternArrays pattern = test::random_pattern({4805, 32, 16, 16}, 0.3, 1, random);
  for_each_kernel<cpu::ForwardArgs>([&](const auto& product, DataType type) {
    const Matrix x = test::random_matrix(type, 9, 32, random);
    const Matrix values = test::random_values(type, pattern, random);
    Matrix y(type, 9, 4805, 4805);
    const auto args =
        test::forward_args(pattern, x, values, nullptr, Activation::none, nullptr, &y);
    ASSERT_TRUE(product(args, serial_executor()).ok());
    test::expect_close(y, test::exact_forward(pattern, x, values, nullptr), type);
  });
}

/// Runs every kernel that does not refuse.
template <class Args>
void expect_all_close(const Args& args, Matrix& result, const std::vector<test::Exact>& exact) {
  for (const auto& kernel : cpu::kernels<Args>()) {
    if (cpu::refusal(kernel, args, cpu::detected_features()) != nullptr) continue;
    SCOPED_TRACE(kernel.name);
    result.fill_all(test::untouched);
    ASSERT_TRUE(kernel.run(args, serial_executor()).ok());
    test::expect_close(result, exact, result.type());
  }
}

void expect_exact_products(const test::Shape& shape, DataType type, std::int64_t tokens) {
  Random random(9);
  const PatternArrays pattern = test::random_pattern(shape, 1.0, 1, random);
  const Matrix x = test::random_matrix(type, tokens, shape.cols, random);
  const Matrix dy = test::random_matrix(type, tokens, shape.rows, random);
  const Matrix values = test::random_values(type, pattern, random);
  Matrix y(type, tokens, shape.rows, shape.rows);
  Matrix dx(type, tokens, shape.cols, shape.cols);
  expect_all_close(test::forward_args(pattern, x, values, nullptr, Activation::none, nullptr, &y),
                   y, test::exact_forward(pattern, x, values, nullptr));
  expect_all_close(test::input_gradient_args(pattern, dy, values, &dx), dx,
                   test::exact_input_gradient(pattern, dy, values));
}

/// More than is packed at a time: of W 2^20 elements, of tokens 2^16; 2^17 with tokens along
/// vectors, which take two vectors instead of three where there are many features.
TEST(LargeProducts, AreMadeOfSeveralPackedParts) {
  expect_exact_products({1361, 1043, 16, 16}, DataType::f32, 70);
  expect_exact_products({1361, 1043, 16, 16}, DataType::bf16, 70);
  expect_exact_products({99, 1043, 8, 8}, DataType::f32, 150);
  expect_exact_products({5500, 41, 8, 8}, DataType::f32, 50);
}

/// The bits of `result` after run(executor), the same for every number of threads.
template <class Run>
void expect_same_bits(Matrix& result, const Run& run) {
  result.fill_all(test::untouched);
  ASSERT_TRUE(run(serial_executor()).ok());
  const Matrix expected = result;
  for (const int threads : {2, 3, 7}) {
    result.fill_all(test::untouched);
    ASSERT_TRUE(run(*make_thread_pool(threads)).ok());
    EXPECT_TRUE(result.same_bits(expected)) << threads << " threads";
  }
}

/// A product large enough that it is cut among threads, with few and many tokens.
class Threads : public testing::TestWithParam<std::tuple<DataType, std::int64_t>> {
 protected:
  template <class Args>
  static void expect_same(const Args& args, Matrix& result) {
    for (const auto& kernel : cpu::kernels<Args>()) {
      if (cpu::refusal(kernel, args, cpu::detected_features()) != nullptr) continue;
      SCOPED_TRACE(kernel.name);
      expect_same_bits(result,
                       [&](const Executor& executor) { return kernel.run(args, executor); });
    }
  }
};

std::string name_of_load(const testing::TestParamInfo<Threads::ParamType>& load) {
  const auto& [type, tokens] = load.param;
  return std::string(name_of(type)) + "_" + std::to_string(tokens) + "_tokens";
}

INSTANTIATE_TEST_SUITE_P(All, Threads,
                         testing::Combine(testing::Values(DataType::f32, DataType::bf16),
                                          testing::Values(1, 5, 97)),
                         name_of_load);

TEST_P(Threads, DoNotChangeResults) {
  const auto [type, tokens] = GetParam();
  Random random(5);
  // 1,230 x 2,010 at density .6: over 1e6 multiply-adds a token, more than runs serially.
  const PatternArrays pattern = test::random_pattern({1230, 2010, 32, 16}, 0.6, 2, random);
  const Matrix x = test::random_matrix(type, tokens, 2010, random);
  const Matrix dy = test::random_matrix(type, tokens, 1230, random);
  const Matrix values = test::random_values(type, pattern, random);
  Matrix y(type, tokens, 1230, 1230);
  Matrix dx(type, tokens, 2010, 2010);
  Matrix dvalues(type, pattern.slots, 512, 512);
  Matrix norms(DataType::f32, 39, 126, 126);
  expect_same(test::forward_args(pattern, x, values, nullptr, Activation::gelu, nullptr, &y), y);
  expect_same(test::input_gradient_args(pattern, dy, values, &dx), dx);
  expect_same(test::weight_gradient_args(pattern, dy, x, false, &dvalues), dvalues);
  expect_same(test::block_norms_args(pattern, dy, x, &norms), norms);
}

}  // namespace
}  // namespace block_sparse
