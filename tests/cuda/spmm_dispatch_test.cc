// SPDX-License-Identifier: Apache-2.0
#include "layer.h"

namespace block_sparse::cuda::test {
namespace {

TEST(SpmmDispatch, RefusesAForcedKernelInASentence) {
  const Layer l({.out = 50, .in = 70, .block_height = 16, .block_width = 24}, 5);
  const DeviceLayer d(l);
  const DeviceBuffer y(bytes_of(l.c.tokens, d.ldy, l.c.dtype));
  const Forced forced("sm90_spmm");
  const Status s = forward(forward_args(l, d, y.data()), nullptr);
  EXPECT_EQ(s.code(), StatusCode::unsupported);
  EXPECT_NE(s.message().find("BLOCK_SPARSE_FORCE=sm90_spmm"), std::string::npos) << s.message();
}

TEST(SpmmDispatch, TheFastestKernelIsChosen) {
  cudaDeviceProp device{};
  BLOCK_SPARSE_CUDA_OK(cudaGetDeviceProperties(&device, 0));
  const bool is_hopper = device.major == 9;
  const auto chosen = [](const LayerCase& c) {
    const Layer l(c, 22);
    const DeviceLayer d(l);
    const DeviceBuffer y(bytes_of(l.c.tokens, d.ldy, l.c.dtype));
    return kernel_of(forward_args(l, d, y.data()));
  };
  LayerCase c{.out = 512, .in = 512, .block_height = 64, .block_width = 64, .tokens = 128};
  EXPECT_EQ(chosen(c), is_hopper ? "sm90_wide" : "sm80_spmm");
  c.block_height = 32;
  EXPECT_EQ(chosen(c), "sm80_spmm");
  c.block_width = 32;
  c.density = 0.1;
  EXPECT_EQ(chosen(c), is_hopper ? "sm90_spmm" : "sm80_spmm");
  {
    const Layer l(c, 22);
    const DeviceLayer d(l);
    const DeviceBuffer dx(bytes_of(l.c.tokens, d.ldx, l.c.dtype));
    EXPECT_EQ(kernel_of(input_gradient_args(l, d, dx.data())),
              is_hopper ? "sm90_wide" : "sm80_spmm");
  }
  c.density = 0.05;
  EXPECT_EQ(chosen(c), is_hopper ? "sm90_wide" : "sm80_spmm");
  c.density = 0.1;
  c.tokens = 20;
  EXPECT_EQ(chosen(c), "sm80_decode");
  c.dtype = DataType::f32;
  EXPECT_EQ(chosen(c), "sm80_decode_f32");
  c.tf32 = true;
  EXPECT_EQ(chosen(c), "sm80_decode");
  c.tokens = 8;
  EXPECT_EQ(chosen(c), "sm80_decode_f32");
  c.tf32 = false;
  c.tokens = 128;
  EXPECT_EQ(chosen(c), "sm80_spmm");
  c.dtype = DataType::f64;
  EXPECT_EQ(chosen(c), "generic_spmm");
}

TEST(SpmmDispatch, DecodeRefusesMoreThan64Tokens) {
  const Layer l({.out = 64, .in = 64, .tokens = 65}, 10);
  const DeviceLayer d(l);
  const DeviceBuffer y(bytes_of(l.c.tokens, d.ldy, l.c.dtype));
  const Forced forced("sm80_decode");
  const Status s = forward(forward_args(l, d, y.data()), nullptr);
  EXPECT_EQ(s.code(), StatusCode::unsupported);
  EXPECT_NE(s.message().find("not 1 to 64 tokens"), std::string::npos) << s.message();
}

TEST(SpmmDispatch, NoSlotsGiveTheBias) {
  const Layer l({.out = 128, .in = 128, .tokens = 9, .fill = Fill::empty, .spare_slots = 0}, 9);
  const DeviceLayer d(l);
  const DeviceBuffer y(bytes_of(l.c.tokens, d.ldy, l.c.dtype));
  const Status s = forward(forward_args(l, d, y.data()), nullptr);
  ASSERT_TRUE(s.ok()) << s.message();
  BLOCK_SPARSE_CUDA_OK(cudaDeviceSynchronize());
  expect_close(y, l.c.dtype, l.forward(), l.c.tokens, l.c.out, 0, l.c.in, Activation::none,
               DataType::f32);
}

TEST(SpmmDispatch, OddAlignmentGoesToAKernelThatTakesIt) {
  const Layer l({.out = 64, .in = 64, .tokens = 9, .gap = 3}, 6);
  const DeviceLayer d(l);
  const DeviceBuffer y(bytes_of(l.c.tokens, d.ldy, l.c.dtype));
  const Status s = forward(forward_args(l, d, y.data()), nullptr);
  ASSERT_TRUE(s.ok()) << s.message();
  BLOCK_SPARSE_CUDA_OK(cudaDeviceSynchronize());
  expect_close(y, l.c.dtype, l.forward(), l.c.tokens, l.c.out, l.c.gap, l.c.in, Activation::none,
               DataType::f32);
}

}  // namespace
}  // namespace block_sparse::cuda::test
