// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "cuda/sm80/spmm/spmm.h"
#include "cuda/sm90/lists/lists.h"

namespace block_sparse::cuda::sm80::spmm {
namespace {

generic::SpmmProblem problem(DataType type, bool tf32, std::int64_t block, double density) {
  generic::SpmmProblem p{};
  p.dtype = type;
  p.allow_tf32 = tf32;
  p.height = p.width = block;
  p.out = p.in = 2048;
  p.slots = static_cast<std::int64_t>(density * static_cast<double>(p.out / block * p.in / block));
  return p;
}

TEST(Choice, F32UsesTensorCoresOnlyWhereTf32IsAllowed) {
  EXPECT_EQ(choose(problem(DataType::f32, false, 32, 0.5)).math, Choice::Math::ffma);
  EXPECT_EQ(choose(problem(DataType::f32, true, 32, 0.5)).math, Choice::Math::tf32);
  EXPECT_EQ(choose(problem(DataType::bf16, true, 32, 0.5)).math, Choice::Math::mma16);
}

TEST(Choice, LinesGoTogetherWhereTheyShareColumns) {
  EXPECT_EQ(choose(problem(DataType::f16, false, 16, 0.5)).lines, kLinesTogether);
  EXPECT_EQ(choose(problem(DataType::bf16, false, 16, 0.03)).lines, 1);
  EXPECT_EQ(choose(problem(DataType::bf16, false, 32, 0.5)).lines, 1);
  EXPECT_EQ(choose(problem(DataType::f32, true, 16, 0.5)).lines, 1);
}

TEST(Choice, IsPrinted) {
  EXPECT_EQ(to_string({Choice::Math::mma16, 8}), "mma.sync of 16 bits, 8 lines a CTA");
  EXPECT_EQ(to_string({Choice::Math::ffma, 1}), "FFMA, 1 line a CTA");
}

}  // namespace
}  // namespace block_sparse::cuda::sm80::spmm

namespace block_sparse::cuda::sm90::lists {
namespace {

generic::SpmmProblem problem(std::int64_t block, double density) {
  generic::SpmmProblem p{};
  p.dtype = DataType::bf16;
  p.height = p.width = block;
  p.out = p.in = 2048;
  p.tokens = 1024;
  p.ldx = p.ldy = 2048;
  p.slots = static_cast<std::int64_t>(density * static_cast<double>(p.out / block * p.in / block));
  return p;
}

TEST(Lists, TakeSmallSquareBlocks) {
  EXPECT_EQ(refusal(problem(16, 0.1)), nullptr);
  EXPECT_EQ(refusal(problem(32, 0.1)), nullptr);
  EXPECT_STREQ(refusal(problem(64, 0.1)), "the blocks are not 16 x 16 or 32 x 32");
  generic::SpmmProblem p = problem(32, 0.1);
  p.dtype = DataType::f32;
  EXPECT_STREQ(refusal(p), "not a 16-bit type");
  p = problem(32, 0.1);
  p.ldx = 2049;
  EXPECT_STREQ(refusal(p), "a row stride is not a multiple of 16 bytes");
}

TEST(Lists, GiveXMoreRoomTheFewerBlocksThereAre) {
  EXPECT_EQ(stages_of(problem(32, 0.5)), 3);
  EXPECT_EQ(stages_of(problem(32, 0.1)), 4);
  EXPECT_EQ(stages_of(problem(32, 0.05)), 5);
  EXPECT_EQ(stages_of(problem(16, 0.05)), 4);
}

}  // namespace
}  // namespace block_sparse::cuda::sm90::lists
