// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <tuple>

#include "layer.h"

namespace block_sparse::cuda::test {
namespace {

/// As many tokens as the test asks for, where the kernel takes them.
std::int64_t tokens_for(const std::string& kernel, std::int64_t wanted) {
  return kernel.find("decode") != kernel.npos ? std::min<std::int64_t>(wanted, 50) : wanted;
}

/// Sides of blocks that the kernel has different code for.
std::vector<std::int64_t> sides_for(const std::string& kernel) {
  if (kernel == "sm90_wide") return {16, 32, 64};
  return {kernel == "sm90_decode" ? 64 : 32};
}

class Fused : public testing::TestWithParam<std::tuple<std::string, Activation>> {};

TEST_P(Fused, BiasActivationAndPreactivation) {
  const auto& [kernel, activation] = GetParam();
  for (const std::int64_t side : sides_for(kernel)) {
    SCOPED_TRACE("blocks of " + std::to_string(side));
    const Layer l({.out = 192,
                   .in = 256,
                   .block_height = side,
                   .block_width = side,
                   .tokens = tokens_for(kernel, 600)},
                  3);
    const DeviceLayer d(l);
    const DeviceBuffer y(bytes_of(l.c.tokens, d.ldy, l.c.dtype));
    const DeviceBuffer pre(bytes_of(l.c.tokens, d.ldy, l.c.dtype));
    const Forced forced(kernel);
    ForwardArgs a = forward_args(l, d, y.data());
    a.activation = activation;
    a.preactivation = pre.data();
    const Status s = forward(a, nullptr);
    ASSERT_TRUE(s.ok()) << s.message();
    BLOCK_SPARSE_CUDA_OK(cudaDeviceSynchronize());
    const Expected e = l.forward();
    expect_close(pre, l.c.dtype, e, l.c.tokens, l.c.out, 0, l.c.in, Activation::none,
                 DataType::f32);
    expect_close(y, l.c.dtype, e, l.c.tokens, l.c.out, 0, l.c.in, activation, DataType::f32);
  }
}

TEST_P(Fused, WithoutBiasAndPlan) {
  const auto& [kernel, activation] = GetParam();
  for (const std::int64_t side : sides_for(kernel)) {
    SCOPED_TRACE("blocks of " + std::to_string(side));
    Layer l({.out = 192,
             .in = 192,
             .block_height = side,
             .block_width = side,
             .tokens = tokens_for(kernel, 100)},
            4);
    l.bias.assign(l.bias.size(), 0);
    const DeviceLayer d(l, false);
    const DeviceBuffer y(bytes_of(l.c.tokens, d.ldy, l.c.dtype));
    const Forced forced(kernel);
    ForwardArgs a = forward_args(l, d, y.data());
    a.plan = nullptr;
    a.bias = nullptr;
    a.activation = activation;
    const Status s = forward(a, nullptr);
    ASSERT_TRUE(s.ok()) << s.message();
    BLOCK_SPARSE_CUDA_OK(cudaDeviceSynchronize());
    expect_close(y, l.c.dtype, l.forward(), l.c.tokens, l.c.out, 0, l.c.in, activation,
                 DataType::f32);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Kernels, Fused,
    testing::Combine(testing::Values("generic_spmm", "sm80_spmm", "sm90_lists", "sm90_spmm",
                                     "sm90_wide", "sm80_decode", "sm90_decode"),
                     testing::Values(Activation::none, Activation::relu, Activation::gelu,
                                     Activation::gelu_tanh, Activation::silu)));

/// So many outputs and tokens that a CTA computes several tiles of tokens: the same
/// bits as in calls of few tokens each, which the other tests hold against float64.
class ManyTiles : public testing::TestWithParam<LayerCase> {};

TEST_P(ManyTiles, GiveTheBitsOfFewTokens) {
  const Layer l(GetParam(), 21);
  const DeviceLayer d(l);
  const DeviceBuffer whole(bytes_of(l.c.tokens, d.ldy, l.c.dtype));
  const DeviceBuffer pieces(bytes_of(l.c.tokens, d.ldy, l.c.dtype));
  const Forced forced("sm80_spmm");
  ForwardArgs a = forward_args(l, d, whole.data());
  Status s = forward(a, nullptr);
  ASSERT_TRUE(s.ok()) << s.message();
  constexpr std::int64_t kPiece = 500;
  for (std::int64_t t = 0; t < l.c.tokens; t += kPiece) {
    a.tokens = std::min(kPiece, l.c.tokens - t);
    a.x = d.x.as<char>() + bytes_of(t, d.ldx, l.c.dtype);
    a.y = pieces.as<char>() + bytes_of(t, d.ldy, l.c.dtype);
    s = forward(a, nullptr);
    ASSERT_TRUE(s.ok()) << s.message();
  }
  BLOCK_SPARSE_CUDA_OK(cudaDeviceSynchronize());
  EXPECT_EQ(whole.bytes(), pieces.bytes());
}

std::vector<LayerCase> many_tiles_cases() {
  // One window of blocks a line, lines without blocks among them; then several.
  return {{.out = 8192,
           .in = 128,
           .block_height = 16,
           .block_width = 16,
           .density = 0.05,
           .tokens = 7000},
          {.out = 16384,
           .in = 128,
           .block_height = 16,
           .block_width = 16,
           .density = 0.6,
           .tokens = 9000},
          {.out = 4096,
           .in = 4800,
           .block_height = 16,
           .block_width = 16,
           .density = 0.95,
           .tokens = 6000,
           .dtype = DataType::f32}};
}
INSTANTIATE_TEST_SUITE_P(Portable, ManyTiles, testing::ValuesIn(many_tiles_cases()));

class FusedF32 : public testing::TestWithParam<std::tuple<std::string, bool, std::int64_t>> {};

TEST_P(FusedF32, BiasActivationAndPreactivation) {
  const auto& [kernel, tf32, block] = GetParam();
  const Layer l({.out = 384,
                 .in = 256,
                 .block_height = block,
                 .block_width = block,
                 .tokens = tokens_for(kernel, 200),
                 .dtype = DataType::f32,
                 .tf32 = tf32},
                13);
  const DeviceLayer d(l);
  const DeviceBuffer y(bytes_of(l.c.tokens, d.ldy, l.c.dtype));
  const DeviceBuffer pre(bytes_of(l.c.tokens, d.ldy, l.c.dtype));
  const Forced forced(kernel);
  ForwardArgs a = forward_args(l, d, y.data());
  a.activation = Activation::silu;
  a.preactivation = pre.data();
  const Status s = forward(a, nullptr);
  ASSERT_TRUE(s.ok()) << s.message();
  BLOCK_SPARSE_CUDA_OK(cudaDeviceSynchronize());
  const Expected e = l.forward();
  expect_close(pre, l.c.dtype, e, l.c.tokens, l.c.out, 0, l.c.in, Activation::none, DataType::f32);
  expect_close(y, l.c.dtype, e, l.c.tokens, l.c.out, 0, l.c.in, a.activation, DataType::f32);
}
INSTANTIATE_TEST_SUITE_P(Portable, FusedF32,
                         testing::Combine(testing::Values("sm80_spmm"), testing::Bool(),
                                          testing::Values(16, 32, 64, 128)));
INSTANTIATE_TEST_SUITE_P(Decode, FusedF32,
                         testing::Values(std::tuple("sm80_decode_f32", false, 64),
                                         std::tuple("sm80_decode", true, 32)));

}  // namespace
}  // namespace block_sparse::cuda::test
