// SPDX-License-Identifier: Apache-2.0
#include "reference/kernels.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "common/scratch.h"
#include "support.h"

/// The inner loops of every instruction set that this processor has.
namespace block_sparse {
namespace {

using reference::Kernels;
using reference::Lines;
using test::Random;

template <class A>
class ReferenceKernels : public testing::Test {
 protected:
  static constexpr DataType type = std::is_same_v<A, double> ? DataType::f64 : DataType::f32;

  static std::vector<const Kernels<A>*> all() {
    std::vector<const Kernels<A>*> out;
    for (const cpu::Features wanted : {cpu::Features{0}, cpu::Features{cpu::avx2_fma},
                                       cpu::Features{cpu::avx2_fma | cpu::avx512}}) {
      if ((wanted & cpu::detected_features()) == wanted) {
        out.push_back(&reference::choose_kernels<A>(wanted));
      }
    }
    return out;
  }

  static Scratch<A> random_numbers(std::int64_t count, Random& random) {
    Scratch<A> out(count);
    std::uniform_real_distribution<A> uniform(-1, 1);
    for (std::int64_t i = 0; i < count; ++i) out.get()[i] = uniform(random);
    return out;
  }
};

using AccumulatorTypes = testing::Types<float, double>;
TYPED_TEST_SUITE(ReferenceKernels, AccumulatorTypes);

TYPED_TEST(ReferenceKernels, AreDifferentForEachInstructionSet) {
  const auto kernels = this->all();
  for (std::size_t i = 1; i < kernels.size(); ++i) {
    EXPECT_EQ(kernels[i]->tile, 2 * kernels[i - 1]->tile);
    EXPECT_LE(kernels[i]->tile, reference::max_tile<TypeParam>);
  }
}

TYPED_TEST(ReferenceKernels, RowsSumOverTheBlocksOfTheirLine) {
  using A = TypeParam;
  Random random(5);
  for (const Kernels<A>* kernels : this->all()) {
    for (int round = 0; round < 40; ++round) {
      const test::Shape shape{test::draw(random, 1, 40), test::draw(random, 1, 40),
                              test::draw(random, 1, 9), test::draw(random, 1, 9)};
      const auto pattern = test::random_pattern(shape, 0.5, 1, random);
      const test::Matrix values = test::random_values(this->type, pattern, random);
      const auto x = this->random_numbers(shape.cols * kernels->tile, random);
      test::Matrix tokens(this->type, kernels->tile, shape.cols, shape.cols);
      for (std::int64_t t = 0; t < kernels->tile; ++t) {
        for (std::int64_t c = 0; c < shape.cols; ++c) {
          tokens.set(t, c, x.get()[c * kernels->tile + t]);
        }
      }
      const auto expected = test::exact_forward(pattern, tokens, values, nullptr);
      const Lines<A> lines{.pointers = pattern.crow.data(),
                           .indices = pattern.col.data(),
                           .ids = pattern.ids.data(),
                           .values = static_cast<const A*>(values.data()),
                           .line_extent = shape.block_height,
                           .reduce_extent = shape.block_width,
                           .output_size = shape.rows,
                           .reduce_size = shape.cols,
                           .block_elements = shape.block_height * shape.block_width,
                           .output_stride = shape.block_width,
                           .reduce_stride = 1};
      const std::int64_t first = test::draw(random, 0, shape.rows - 1);
      const std::int64_t count = test::draw(random, 1, shape.rows - first);
      const Scratch<A> out(count * kernels->tile);
      kernels->rows(lines, x.get(), first, count, out.get());
      for (std::int64_t i = 0; i < count; ++i) {
        for (std::int64_t t = 0; t < kernels->tile; ++t) {
          const test::Exact& exact = expected[static_cast<std::size_t>(t * shape.rows + first + i)];
          ASSERT_TRUE(test::close(out.get()[i * kernels->tile + t], exact.value,
                                  test::tolerance(exact, this->type, this->type)))
              << to_string(shape) << ", tile " << kernels->tile;
        }
      }
    }
  }
}

TYPED_TEST(ReferenceKernels, DotsAddToTheirResult) {
  using A = TypeParam;
  Random random(6);
  for (const Kernels<A>* kernels : this->all()) {
    for (std::int64_t na = 1; na <= 9; ++na) {
      for (std::int64_t nb = 1; nb <= 5; ++nb) {
        const std::int64_t length = kernels->tile * test::draw(random, 1, 4);
        const std::int64_t ldo = nb + 2;
        const auto a = this->random_numbers(na * length, random);
        const auto b = this->random_numbers(nb * length, random);
        const auto out = this->random_numbers(na * ldo, random);
        const std::vector<A> before(out.get(), out.get() + na * ldo);
        kernels->dots(a.get(), na, b.get(), nb, length, out.get(), ldo);
        for (std::int64_t i = 0; i < na; ++i) {
          for (std::int64_t j = 0; j < ldo; ++j) {
            const auto at = static_cast<std::size_t>(i * ldo + j);
            if (j >= nb) {
              ASSERT_EQ(out.get()[at], before[at]);
              continue;
            }
            test::Exact exact;
            exact.add(before[at], 1);
            for (std::int64_t t = 0; t < length; ++t) {
              exact.add(a.get()[i * length + t], b.get()[j * length + t]);
            }
            ASSERT_TRUE(test::close(out.get()[at], exact.value,
                                    test::tolerance(exact, this->type, this->type)))
                << na << " by " << nb << ", tile " << kernels->tile;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace block_sparse
