// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "layer.h"
#include "lists_cases.h"

namespace block_sparse::cuda::test {
namespace {

ForwardArgs forward_args(const Layer& l, const DeviceLayer& d, void* y) {
  ForwardArgs a;
  a.dtype = l.c.dtype;
  a.allow_tf32 = l.c.tf32;
  a.pattern = d.pattern;
  a.plan = d.plan.as<std::int32_t>();
  a.tokens = l.c.tokens;
  a.x = d.x.data();
  a.ldx = d.ldx;
  a.values = d.values.data();
  a.bias = d.bias.data();
  a.y = y;
  a.ldy = d.ldy;
  return a;
}

InputGradientArgs input_gradient_args(const Layer& l, const DeviceLayer& d, void* dx) {
  InputGradientArgs a;
  a.dtype = l.c.dtype;
  a.allow_tf32 = l.c.tf32;
  a.pattern = d.pattern;
  a.plan = d.plan.as<std::int32_t>();
  a.tokens = l.c.tokens;
  a.dy = d.dy.data();
  a.lddy = d.ldy;
  a.values = d.values.data();
  a.dx = dx;
  a.lddx = d.ldx;
  return a;
}

std::size_t bytes_of(std::int64_t rows, std::int64_t stride, DataType type) {
  return static_cast<std::size_t>(rows * stride) * size_of(type);
}

DataType sum_type(DataType type) { return type == DataType::f64 ? DataType::f64 : DataType::f32; }

struct SpmmCase {
  LayerCase layer;
  std::string kernel;
};
void PrintTo(const SpmmCase& c, std::ostream* out) {
  *out << c.kernel << "_" << name_of_case(c.layer);
}

class Spmm : public testing::TestWithParam<SpmmCase> {};

TEST_P(Spmm, ForwardIsRight) {
  const Layer l(GetParam().layer, 1);
  const DeviceLayer d(l);
  const DeviceBuffer y(bytes_of(l.c.tokens, d.ldy, l.c.dtype));
  const Forced forced(GetParam().kernel);
  const ForwardArgs a = forward_args(l, d, y.data());
  ASSERT_EQ(kernel_of(a), GetParam().kernel);
  const Status s = forward(a, nullptr);
  ASSERT_TRUE(s.ok()) << s.message();
  BLOCK_SPARSE_CUDA_OK(cudaDeviceSynchronize());
  expect_close(y, l.c.dtype, l.forward(), l.c.tokens, l.c.out, l.c.gap, l.c.in, Activation::none,
               sum_type(l.c.dtype));
}

TEST_P(Spmm, InputGradientIsRight) {
  const Layer l(GetParam().layer, 2);
  const DeviceLayer d(l);
  const DeviceBuffer dx(bytes_of(l.c.tokens, d.ldx, l.c.dtype));
  const Forced forced(GetParam().kernel);
  const InputGradientArgs a = input_gradient_args(l, d, dx.data());
  ASSERT_EQ(kernel_of(a), GetParam().kernel);
  const Status s = input_gradient(a, nullptr);
  ASSERT_TRUE(s.ok()) << s.message();
  BLOCK_SPARSE_CUDA_OK(cudaDeviceSynchronize());
  expect_close(dx, l.c.dtype, l.input_gradient(), l.c.tokens, l.c.in, l.c.gap, l.c.out,
               Activation::none, sum_type(l.c.dtype));
}

std::vector<SpmmCase> generic_cases() {
  std::vector<SpmmCase> cases;
  for (const DataType type : {DataType::f32, DataType::f64, DataType::bf16, DataType::f16}) {
    cases.push_back({{.out = 96,
                      .in = 160,
                      .block_height = 32,
                      .block_width = 32,
                      .tokens = 127,
                      .dtype = type,
                      .gap = 5},
                     "generic_spmm"});
    cases.push_back({{.out = 50,
                      .in = 70,
                      .block_height = 16,
                      .block_width = 24,
                      .tokens = 33,
                      .dtype = type,
                      .gap = 1},
                     "generic_spmm"});
    cases.push_back(
        {{.out = 17, .in = 9, .block_height = 1, .block_width = 3, .tokens = 3, .dtype = type},
         "generic_spmm"});
    cases.push_back(
        {{.out = 130, .in = 64, .block_height = 65, .block_width = 5, .tokens = 1, .dtype = type},
         "generic_spmm"});
    cases.push_back(
        {{.out = 64, .in = 64, .block_height = 32, .block_width = 32, .tokens = 0, .dtype = type},
         "generic_spmm"});
  }
  return cases;
}

std::vector<SpmmCase> sm90_cases() {
  std::vector<SpmmCase> cases;
  for (const DataType type : {DataType::bf16, DataType::f16}) {
    for (const std::int64_t b : {16, 32, 64, 128}) {
      const char* kernel = b < 64 ? "sm90_spmm" : "sm90_wide";
      for (const std::int64_t tokens : {1, 3, 127, 128, 1000}) {
        cases.push_back({{.out = 512,
                          .in = 384,
                          .block_height = b,
                          .block_width = b,
                          .density = 0.4,
                          .tokens = tokens,
                          .dtype = type},
                         kernel});
      }
      for (const double density : {0.05, 1.0}) {
        cases.push_back({{.out = 384,
                          .in = 640,
                          .block_height = b,
                          .block_width = b,
                          .density = density,
                          .tokens = 520,
                          .dtype = type,
                          .gap = 8},
                         kernel});
      }
      for (const Fill fill : {Fill::power_law, Fill::one_full_row, Fill::empty}) {
        cases.push_back({{.out = 768,
                          .in = 256,
                          .block_height = b,
                          .block_width = b,
                          .density = 0.3,
                          .tokens = 300,
                          .dtype = type,
                          .fill = fill},
                         kernel});
      }
    }
    // Odd numbers of lines and of tiles.
    cases.push_back(
        {{.out = 80, .in = 48, .block_height = 16, .block_width = 16, .tokens = 65, .dtype = type},
         "sm90_spmm"});
    cases.push_back({{.out = 96,
                      .in = 160,
                      .block_height = 32,
                      .block_width = 32,
                      .tokens = 700,
                      .dtype = type},
                     "sm90_spmm"});
    cases.push_back({{.out = 320,
                      .in = 192,
                      .block_height = 64,
                      .block_width = 64,
                      .tokens = 513,
                      .dtype = type},
                     "sm90_wide"});
    cases.push_back({{.out = 384,
                      .in = 256,
                      .block_height = 128,
                      .block_width = 64,
                      .tokens = 257,
                      .dtype = type},
                     "sm90_wide"});
    cases.push_back({{.out = 192,
                      .in = 512,
                      .block_height = 64,
                      .block_width = 256,
                      .tokens = 64,
                      .dtype = type},
                     "sm90_wide"});
    // A pair of tiles that begins in one line and ends in the next.
    cases.push_back({{.out = 960,
                      .in = 384,
                      .block_height = 192,
                      .block_width = 64,
                      .tokens = 400,
                      .dtype = type},
                     "sm90_wide"});
    // Lines of more blocks than are read at a time.
    cases.push_back({{.out = 128,
                      .in = 6400,
                      .block_height = 64,
                      .block_width = 64,
                      .density = 0.9,
                      .tokens = 300,
                      .dtype = type},
                     "sm90_wide"});
  }
  // More tiles than multiprocessors, several rounds of token tiles.
  cases.push_back({{.out = 1024, .in = 128, .block_height = 32, .block_width = 32, .tokens = 5000},
                   "sm90_spmm"});
  cases.push_back({{.out = 1024, .in = 128, .block_height = 64, .block_width = 64, .tokens = 5000},
                   "sm90_wide"});
  cases.push_back({{.out = 2048, .in = 192, .block_height = 64, .block_width = 64, .tokens = 2500},
                   "sm90_wide"});
  // More than one round of the schedule's widest.
  cases.push_back({{.out = 128, .in = 64, .block_height = 64, .block_width = 64, .tokens = 72000},
                   "sm90_wide"});
  return cases;
}

/// How a kernel sees its operands.
struct Arithmetic {
  DataType type;
  bool tf32;
};
constexpr Arithmetic kArithmetic[] = {
    {DataType::bf16, false}, {DataType::f16, false}, {DataType::f32, true}, {DataType::f32, false}};

std::vector<SpmmCase> decode_cases() {
  std::vector<SpmmCase> cases;
  for (const auto& [type, tf32] : kArithmetic) {
    const char* kernel = type == DataType::f32 && !tf32 ? "sm80_decode_f32" : "sm80_decode";
    for (const std::int64_t height : {16, 32, 64, 128}) {
      for (const std::int64_t width : {16, 32, 64, 128}) {
        // Every number of token tiles, whole and not; the odd ones with strides.
        for (const std::int64_t tokens : {1, 3, 7, 8, 16, 31, 33, 64}) {
          cases.push_back({{.out = 384,
                            .in = 640,
                            .block_height = height,
                            .block_width = width,
                            .density = 0.4,
                            .tokens = tokens,
                            .dtype = type,
                            .gap = tokens % 2 * 8,
                            .tf32 = tf32},
                           kernel});
        }
      }
      for (const Fill fill : {Fill::power_law, Fill::one_full_row, Fill::empty}) {
        cases.push_back({{.out = 768,
                          .in = 256,
                          .block_height = height,
                          .block_width = height,
                          .density = 0.3,
                          .tokens = 20,
                          .dtype = type,
                          .fill = fill,
                          .tf32 = tf32},
                         kernel});
      }
      // More K than one round of the warps takes.
      cases.push_back({{.out = 128,
                        .in = 4096,
                        .block_height = height,
                        .block_width = height,
                        .density = 1.0,
                        .tokens = 33,
                        .dtype = type,
                        .tf32 = tf32},
                       kernel});
    }
  }
  return cases;
}

std::vector<SpmmCase> portable_cases() {
  std::vector<SpmmCase> cases;
  const char* kernel = "sm80_spmm";
  for (const auto& [type, tf32] : kArithmetic) {
    for (const std::int64_t height : {16, 32, 64, 128}) {
      for (const std::int64_t width : {16, 32, 64, 128}) {
        // .05: a line at a time; .4: low blocks in groups of lines.
        for (const double density : {0.05, 0.4}) {
          cases.push_back({{.out = 384,
                            .in = 640,
                            .block_height = height,
                            .block_width = width,
                            .density = density,
                            .tokens = 129,
                            .dtype = type,
                            .gap = 8,
                            .tf32 = tf32},
                           kernel});
        }
      }
      for (const std::int64_t tokens : {0, 1, 3, 127, 128, 1000}) {
        cases.push_back({{.out = 256,
                          .in = 384,
                          .block_height = height,
                          .block_width = height,
                          .density = 0.4,
                          .tokens = tokens,
                          .dtype = type,
                          .tf32 = tf32},
                         kernel});
      }
      for (const Fill fill : {Fill::power_law, Fill::one_full_row, Fill::empty}) {
        cases.push_back({{.out = 768,
                          .in = 256,
                          .block_height = height,
                          .block_width = height,
                          .density = 0.3,
                          .tokens = 300,
                          .dtype = type,
                          .fill = fill,
                          .spare_slots = 40,
                          .tf32 = tf32},
                         kernel});
      }
    }
    // Lines of more blocks than a window holds, groups with missing lines, both ways.
    for (const double density : {0.06, 0.9}) {
      cases.push_back({{.out = 80,
                        .in = 4800,
                        .block_height = 16,
                        .block_width = 16,
                        .density = density,
                        .tokens = 70,
                        .dtype = type,
                        .tf32 = tf32},
                       kernel});
    }
    // Several rounds of token tiles.
    cases.push_back({{.out = 96,
                      .in = 160,
                      .block_height = 32,
                      .block_width = 32,
                      .tokens = 4500,
                      .dtype = type,
                      .tf32 = tf32},
                     kernel});
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Generic, Spmm, testing::ValuesIn(generic_cases()));
INSTANTIATE_TEST_SUITE_P(Portable, Spmm, testing::ValuesIn(portable_cases()));
INSTANTIATE_TEST_SUITE_P(Sm90, Spmm, testing::ValuesIn(sm90_cases()));
INSTANTIATE_TEST_SUITE_P(Decode, Spmm, testing::ValuesIn(decode_cases()));

std::vector<SpmmCase> on_lists() {
  std::vector<SpmmCase> cases;
  for (const LayerCase& layer : lists_cases()) cases.push_back({layer, "sm90_lists"});
  return cases;
}
INSTANTIATE_TEST_SUITE_P(Lists, Spmm, testing::ValuesIn(on_lists()));

/// As many tokens as the test asks for, where the kernel takes them.
std::int64_t tokens_for(const std::string& kernel, std::int64_t wanted) {
  return kernel.starts_with("sm80_decode") ? std::min<std::int64_t>(wanted, 50) : wanted;
}

/// A side of blocks that the kernel takes.
std::int64_t side_for(const std::string& kernel) { return kernel == "sm90_wide" ? 64 : 32; }

class Fused : public testing::TestWithParam<std::tuple<std::string, Activation>> {};

TEST_P(Fused, BiasActivationAndPreactivation) {
  const auto& [kernel, activation] = GetParam();
  const std::int64_t side = side_for(kernel);
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
  expect_close(pre, l.c.dtype, e, l.c.tokens, l.c.out, 0, l.c.in, Activation::none, DataType::f32);
  expect_close(y, l.c.dtype, e, l.c.tokens, l.c.out, 0, l.c.in, activation, DataType::f32);
}

TEST_P(Fused, WithoutBiasAndPlan) {
  const auto& [kernel, activation] = GetParam();
  const std::int64_t side = side_for(kernel);
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

INSTANTIATE_TEST_SUITE_P(Kernels, Fused,
                         testing::Combine(testing::Values("generic_spmm", "sm80_spmm", "sm90_lists",
                                                          "sm90_spmm", "sm90_wide", "sm80_decode"),
                                          testing::Values(Activation::none, Activation::relu,
                                                          Activation::gelu, Activation::gelu_tanh,
                                                          Activation::silu)));

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
    EXPECT_EQ(kernel_of(input_gradient_args(l, d, dx.data())), "sm80_spmm");
  }
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
