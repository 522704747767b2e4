// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <vector>

#include "block_sparse/cpu_features.h"
#include "cpu/sddmm/schedule.h"
#include "cpu/spmm/schedule.h"
#include "emulated_tiles.h"
#include "product_checks.h"

/// The kernels of AMX on emulated tiles. cpu_kernels_test.cc runs them on real ones.
namespace block_sparse {
namespace {

using test::BlockShape;
using test::emulated_sddmm;
using test::emulated_spmm;

/// Around the heights of one, two and three tiles and of a panel.
const std::vector<std::int64_t> token_counts = {0, 1, 15, 16, 17, 33, 49, 130};

class EmulatedTileKernels : public testing::TestWithParam<BlockShape> {
 protected:
  void SetUp() override {
    const cpu::Features either = cpu::avx512_bf16 | cpu::amx_bf16;
    if ((either & cpu::detected_features()) == 0) GTEST_SKIP() << "the rest needs AVX512-BF16";
  }
  void TearDown() override {
    EXPECT_EQ(test::refused_tile_instructions(), 0);
    EXPECT_TRUE(test::tiles_are_released());
  }
};

INSTANTIATE_TEST_SUITE_P(All, EmulatedTileKernels,
                         testing::Values(BlockShape{16, 16}, BlockShape{32, 32}, BlockShape{48, 16},
                                         BlockShape{16, 48}, BlockShape{80, 16}, BlockShape{64, 32},
                                         BlockShape{32, 64}),
                         [](const testing::TestParamInfo<BlockShape>& block) {
                           return std::to_string(block.param.height) + "x" +
                                  std::to_string(block.param.width);
                         });

TEST_P(EmulatedTileKernels, ForwardAgreesWithTheExactProduct) {
  test::check_forward(
      [](const auto& args, const Executor& executor) {
        return cpu::spmm::forward(args, emulated_spmm, executor);
      },
      DataType::bf16, GetParam(), token_counts);
}

TEST_P(EmulatedTileKernels, InputGradientAgreesWithTheExactProduct) {
  test::check_input_gradient(
      [](const auto& args, const Executor& executor) {
        return cpu::spmm::input_gradient(args, emulated_spmm, executor);
      },
      DataType::bf16, GetParam(), token_counts);
}

TEST_P(EmulatedTileKernels, WeightGradientAgreesWithTheExactProduct) {
  test::check_weight_gradient(
      [](const auto& args, const Executor& executor) {
        return cpu::sddmm::weight_gradient(args, emulated_sddmm, executor);
      },
      DataType::bf16, GetParam(), {0, 1, 33, 130});
}

TEST_P(EmulatedTileKernels, BlockNormsAgreeWithTheExactProduct) {
  test::check_block_norms(
      [](const auto& args, const Executor& executor) {
        return cpu::sddmm::block_norms(args, emulated_sddmm, executor);
      },
      DataType::bf16, GetParam(), {0, 1, 33, 130});
}

}  // namespace
}  // namespace block_sparse
