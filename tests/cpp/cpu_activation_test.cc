// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "cpu/dispatch.h"
#include "product_checks.h"

/// The vectorised activations over all of f32, as the forward kernels apply them:
/// a layer without blocks gives activation(bias).
namespace block_sparse {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr long double unit = 0x1p-24L;       // unit roundoff of f32
constexpr long double smallest = 0x1p-149L;  // spacing of its subnormals

/// Every exponent and sign, and densely where activations bend.
std::vector<float> arguments() {
  std::vector<float> values;
  constexpr std::uint64_t prime = 32749;
  for (std::uint64_t bits = 0; bits < std::uint64_t{1} << 32; bits += prime) {
    const auto value = std::bit_cast<float>(static_cast<std::uint32_t>(bits));
    if (std::isfinite(value)) values.push_back(value);
  }
  for (int i = -110000; i <= 110000; ++i) values.push_back(static_cast<float>(i) / 1000.0f);
  return values;
}

std::vector<float> apply(const cpu::Kernel<cpu::ForwardArgs>& kernel, Activation activation,
                         const std::vector<float>& values) {
  std::vector<float> y(values.size());
  cpu::ForwardArgs args;
  args.pattern.rows = static_cast<std::int64_t>(values.size());
  args.pattern.cols = 16;
  args.pattern.block_height = 16;
  args.pattern.block_width = 16;
  const std::vector<std::int32_t> none(static_cast<std::size_t>(args.pattern.n_block_rows()) + 1);
  args.pattern.crow_indices = none.data();
  const std::vector<float> x(16);
  args.tokens = 1;
  args.x = x.data();
  args.ldx = 16;
  args.bias = values.data();
  args.activation = activation;
  args.y = y.data();
  args.ldy = args.pattern.rows;
  // Some take one token only where tiles cannot.
  if (kernel.refuse(args) != nullptr) args.pattern.block_width = 8;
  EXPECT_EQ(kernel.refuse(args), nullptr);
  EXPECT_TRUE(kernel.run(args, serial_executor()).ok());
  return y;
}

struct Expected {
  long double value;
  long double roundings;  // largest relative error, in units
};

/// Written so that nothing cancels in the tails. `roundings` counts one unit for
/// each operation in f32 and constant; exp is within 4: two to reduce its argument
/// to |r| <= .35, the remainder of its series, its polynomial.
Expected expected(Activation activation, long double v) {
  constexpr long double pi = 3.14159265358979323846264338327950288L;
  switch (activation) {
    case Activation::silu:
      // exp, 1 + e, the quotient, times v.
      return {v / (1 + std::exp(-v)), 4 + 3};
    case Activation::gelu_tanh: {
      const long double argument = 2 * std::sqrt(2 / pi) * (v + 0.044715L * v * v * v);
      const long double e = std::exp(-argument);
      // As silu. The argument itself has 7 (3 products, 1 FMA, 2 constants, 1 square),
      // which its exponential turns into 7 |argument|.
      const long double steepness = std::isinf(e) ? 1 : e / (1 + e);
      return {v / (1 + e), 4 + 3 + 7 * std::fabs(argument) * steepness};
    }
    case Activation::gelu:
      // Phi(-u) = exp(-u^2/2) g(t): exp and putting back the rest of u^2, 4 + 2; t, 2,
      // of which g is at most 2 times as steep; g by Horner, sum of (i + 1) |c_i| t^i
      // over g, 16; then its product, 1 - tail and the product with v.
      return {v * std::erfc(-v / std::sqrt(2.0L)) / 2, 6 + 4 + 16 + 3};
    case Activation::relu:
      return {v > 0 ? v : 0, 0};
    case Activation::none:
      break;
  }
  return {v, 0};
}

class ActivationKernels : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    for (const auto& kernel : cpu::kernels<cpu::ForwardArgs>()) {
      if (kernel.name == GetParam()) kernel_ = &kernel;
    }
    const cpu::Features missing = kernel_->needs & ~cpu::detected_features();
    if (missing != 0) GTEST_SKIP() << "needs " << cpu::to_string(missing);
  }
  const cpu::Kernel<cpu::ForwardArgs>* kernel_ = nullptr;
};

/// Without the reference, whose activations are those of common/activation.h.
std::vector<std::string> forward_kernels() {
  std::vector<std::string> names;
  for (const auto& kernel : cpu::kernels<cpu::ForwardArgs>()) {
    // Kernels of bf16 alone share this code with the others and round what it gives.
    if ((kernel.needs & (cpu::avx512_bf16 | cpu::amx_bf16)) != 0) continue;
    if (kernel.needs != 0) names.emplace_back(kernel.name);
  }
  return names;
}

INSTANTIATE_TEST_SUITE_P(All, ActivationKernels, testing::ValuesIn(forward_kernels()),
                         [](const testing::TestParamInfo<std::string>& kernel) {
                           return kernel.param;
                         });

TEST_P(ActivationKernels, StayWithinTheRoundingsOfTheirFormula) {
  const std::vector<float> values = arguments();
  for (const Activation activation : {Activation::none, Activation::relu, Activation::gelu,
                                      Activation::gelu_tanh, Activation::silu}) {
    const std::vector<float> y = apply(*kernel_, activation, values);
    long double worst = 0;
    for (std::size_t i = 0; i < values.size(); ++i) {
      const long double v = values[i];
      const Expected exact = expected(activation, v);
      // Subnormal results and exponentials are rounded to their spacing.
      const long double spacing =
          exact.roundings > 0 ? smallest * (1 + std::fmin(std::fabs(v), 110.0L)) : 0;
      const long double error = std::fabs(y[i] - exact.value);
      ASSERT_LE(error, exact.roundings * unit * std::fabs(exact.value) + spacing)
          << name_of(activation) << "(" << values[i] << ") = " << y[i];
      if (std::fabs(exact.value) > 0x1p-126L) {
        worst = std::fmax(worst, error / (unit * std::fabs(exact.value)));
      }
    }
    RecordProperty(name_of(activation), std::to_string(worst) + " units at most");
  }
}

TEST_P(ActivationKernels, TreatInfinitiesAndNanAsTheFormulasDo) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> values = {infinity, -infinity, nan, -nan, 0.0f};
  for (const Activation activation : {Activation::none, Activation::relu, Activation::gelu,
                                      Activation::gelu_tanh, Activation::silu}) {
    SCOPED_TRACE(name_of(activation));
    const std::vector<float> y = apply(*kernel_, activation, values);
    EXPECT_EQ(y[0], infinity);
    if (activation == Activation::none) {
      EXPECT_EQ(y[1], -infinity);
    } else if (activation == Activation::relu) {
      EXPECT_EQ(y[1], 0.0f);
    } else {
      EXPECT_TRUE(std::isnan(y[1])) << y[1];  // -inf * 0
    }
    EXPECT_TRUE(std::isnan(y[2]));
    EXPECT_TRUE(std::isnan(y[3]));
    EXPECT_EQ(y[4], 0.0f);
  }
}

}  // namespace
}  // namespace block_sparse
