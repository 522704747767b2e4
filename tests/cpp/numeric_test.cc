// SPDX-License-Identifier: Apache-2.0
#include "common/numeric.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "common/activation.h"
#include "common/checked.h"

namespace block_sparse {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

/// From the definition of the format: sign, exponent, fraction.
double decode(std::uint16_t bits, int exponent_bits, int fraction_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = (bits >> fraction_bits) & ((1 << exponent_bits) - 1);
  const int fraction = bits & ((1 << fraction_bits) - 1);
  const double sign = (bits & 0x8000) ? -1 : 1;
  if (exponent == (1 << exponent_bits) - 1) {
    return fraction ? std::numeric_limits<double>::quiet_NaN() : sign * infinity;
  }
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias - fraction_bits);
  return sign * std::ldexp((1 << fraction_bits) + fraction, exponent - bias - fraction_bits);
}

template <class T>
struct Format;
template <>
struct Format<Float16> {
  static constexpr int exponent_bits = 5, fraction_bits = 10;
};
template <>
struct Format<BFloat16> {
  static constexpr int exponent_bits = 8, fraction_bits = 7;
};

template <class T>
double decode(std::uint16_t bits) {
  return decode(bits, Format<T>::exponent_bits, Format<T>::fraction_bits);
}

/// The nearest value by search among all; of two as near, the even one.
template <class T>
class Nearest {
 public:
  Nearest() {
    constexpr int largest = ((1 << Format<T>::exponent_bits) - 1) << Format<T>::fraction_bits;
    // Infinity stands where the next power of two would, as rounding sees it.
    for (int bits = 0; bits <= largest; ++bits) {
      values_.push_back(bits < largest ? decode<T>(static_cast<std::uint16_t>(bits))
                                       : std::ldexp(1.0, 1 << (Format<T>::exponent_bits - 1)));
    }
  }
  std::uint16_t operator()(float value) const {
    const double magnitude = std::fabs(static_cast<double>(value));
    const auto above = std::lower_bound(values_.begin(), values_.end(), magnitude);
    auto index = static_cast<std::size_t>(above - values_.begin());
    if (above == values_.end()) {
      --index;
    } else if (index > 0) {
      const double up = *above - magnitude;
      const double down = magnitude - values_[index - 1];
      if (down < up || (down == up && index % 2 == 1)) --index;
    }
    return static_cast<std::uint16_t>(index | (std::signbit(value) ? 0x8000u : 0u));
  }

 private:
  std::vector<double> values_;
};

template <class T>
class SixteenBits : public testing::Test {};
using SixteenBitTypes = testing::Types<Float16, BFloat16>;
TYPED_TEST_SUITE(SixteenBits, SixteenBitTypes);

TYPED_TEST(SixteenBits, EveryValueWidensExactlyAndComesBack) {
  for (std::uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const TypeParam value{static_cast<std::uint16_t>(bits)};
    const double expected = decode<TypeParam>(value.bits);
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(widen(value))) << bits;
      ASSERT_TRUE(std::isnan(widen(narrow<TypeParam>(widen(value))))) << bits;
    } else {
      ASSERT_EQ(static_cast<double>(widen(value)), expected) << bits;
      ASSERT_EQ(std::signbit(widen(value)), std::signbit(expected)) << bits;
      ASSERT_EQ(narrow<TypeParam>(widen(value)).bits, value.bits);
    }
  }
}

TYPED_TEST(SixteenBits, NarrowsToTheNearestTiesToEven) {
  const Nearest<TypeParam> nearest;
  std::vector<float> cases = {0.0f,
                              -0.0f,
                              infinity,
                              -infinity,
                              std::numeric_limits<float>::max(),
                              std::numeric_limits<float>::min(),
                              std::numeric_limits<float>::denorm_min()};
  // The middle between neighbours, and the floats beside it.
  for (std::uint32_t bits = 0; bits < 0x7fffu; bits += 3) {
    const double low = decode<TypeParam>(static_cast<std::uint16_t>(bits));
    const double high = decode<TypeParam>(static_cast<std::uint16_t>(bits + 1));
    if (!std::isfinite(low) || !std::isfinite(high)) continue;
    const auto middle = static_cast<float>((low + high) / 2);
    for (const float value :
         {middle, std::nextafter(middle, 0.0f), std::nextafter(middle, infinity)}) {
      cases.push_back(value);
      cases.push_back(-value);
    }
  }
  std::mt19937 random(1);
  for (int i = 0; i < 300000; ++i) {
    const auto value = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
    if (!std::isnan(value)) cases.push_back(value);
  }
  for (const float value : cases) {
    ASSERT_EQ(narrow<TypeParam>(value).bits, nearest(value)) << value;
  }
}

TYPED_TEST(SixteenBits, NanStaysNan) {
  for (const std::uint32_t bits :
       {0x7fc00000u, 0x7f800001u, 0x7fffffffu, 0xff800001u, 0xffffffffu}) {
    EXPECT_TRUE(std::isnan(widen(narrow<TypeParam>(std::bit_cast<float>(bits))))) << bits;
  }
}

TEST(WithType, PicksTheElementType) {
  const auto size = [](DataType type) {
    return with_type(type, []<class T>(T*) { return sizeof(T); });
  };
  for (const DataType type : {DataType::f32, DataType::f64, DataType::bf16, DataType::f16}) {
    EXPECT_EQ(size(type), size_of(type));
  }
}

TEST(CheckedProduct, RefusesWhatDoesNotFit) {
  EXPECT_EQ(checked_product({3, 4, 5}), 60);
  EXPECT_EQ(checked_product({std::numeric_limits<std::int64_t>::max(), 1}),
            std::numeric_limits<std::int64_t>::max());
  EXPECT_FALSE(checked_product({std::int64_t{1} << 32, std::int64_t{1} << 31}));
  EXPECT_EQ(checked_product({0, std::numeric_limits<std::int64_t>::max(), 2}), 0);
}

long double exact(Activation activation, long double v) {
  constexpr long double pi = 3.14159265358979323846264338327950288L;
  switch (activation) {
    case Activation::relu:
      return v > 0 ? v : 0;
    case Activation::gelu:
      return v * std::erfc(-v / std::sqrt(2.0L)) / 2;
    case Activation::gelu_tanh:
      return v / 2 * (1 + std::tanh(std::sqrt(2 / pi) * (v + 0.044715L * v * v * v)));
    case Activation::silu:
      return v / (1 + std::exp(-v));
    default:
      return v;
  }
}

template <class A>
void expect_activations_exact() {
  for (const Activation activation : {Activation::none, Activation::relu, Activation::gelu,
                                      Activation::gelu_tanh, Activation::silu}) {
    for (A v = -30; v < 30; v += A(0.0371)) {
      // A few roundings of terms no larger than v.
      const long double tolerance = 8 * std::numeric_limits<A>::epsilon() * std::fabs(v);
      ASSERT_NEAR(static_cast<double>(activate(activation, v)),
                  static_cast<double>(exact(activation, v)), static_cast<double>(tolerance))
          << name_of(activation) << "(" << v << ")";
    }
    EXPECT_EQ(activate(activation, A(0)), A(0)) << name_of(activation);
    EXPECT_TRUE(std::isnan(activate(activation, std::numeric_limits<A>::quiet_NaN())))
        << name_of(activation);
    EXPECT_EQ(activate(activation, std::numeric_limits<A>::infinity()),
              std::numeric_limits<A>::infinity())
        << name_of(activation);
  }
}

TEST(Activations, AgreeWithLongDoubleInFloat) { expect_activations_exact<float>(); }
TEST(Activations, AgreeWithLongDoubleInDouble) { expect_activations_exact<double>(); }

}  // namespace
}  // namespace block_sparse
