// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <set>
#include <vector>

#include "support.h"

/// Random damage to the index of a pattern: never accepted when it is wrong, and
/// never a wild read (this also runs under AddressSanitizer; the arrays are
/// exactly as long as the pattern says).
namespace block_sparse {
namespace {

using test::draw;
using test::PatternArrays;
using test::Random;

/// What every pattern must satisfy, said once more and plainly.
bool in_bounds(const std::vector<std::int32_t>& pointers, const std::vector<std::int32_t>& indices,
               const std::vector<std::int32_t>& ids, std::int64_t n_indices, std::int64_t slots) {
  if (pointers.front() != 0 || !std::is_sorted(pointers.begin(), pointers.end())) return false;
  if (pointers.back() > slots) return false;
  const auto below = [](std::int64_t limit) {
    return [limit](std::int32_t value) { return value >= 0 && value < limit; };
  };
  const auto blocks = static_cast<std::ptrdiff_t>(pointers.back());
  return std::all_of(indices.begin(), indices.begin() + blocks, below(n_indices)) &&
         std::all_of(ids.begin(), ids.begin() + blocks, below(slots));
}

bool valid(const PatternArrays& p) {
  if (!in_bounds(p.crow, p.col, p.ids, p.view().n_block_cols(), p.slots)) return false;
  std::set<std::int32_t> slots;
  for (std::size_t r = 0; r + 1 < p.crow.size(); ++r) {
    for (std::int32_t i = p.crow[r]; i < p.crow[r + 1]; ++i) {
      const auto at = static_cast<std::size_t>(i);
      if (i > p.crow[r] && p.col[at] <= p.col[at - 1]) return false;
      if (!slots.insert(p.ids[at]).second) return false;
    }
  }
  return true;
}

std::int32_t random_garbage(Random& random) {
  switch (draw(random, 0, 3)) {
    case 0:
      return static_cast<std::int32_t>(draw(random, -2, 12));
    case 1:
      return std::numeric_limits<std::int32_t>::max() -
             static_cast<std::int32_t>(draw(random, 0, 1));
    case 2:
      return std::numeric_limits<std::int32_t>::min() +
             static_cast<std::int32_t>(draw(random, 0, 1));
    default:
      return static_cast<std::int32_t>(random());
  }
}

/// Not a number of columns whose (valid) transpose would take gigabytes.
std::int64_t random_extent(Random& random) {
  const std::int64_t extents[] = {std::numeric_limits<std::int64_t>::min(),
                                  -1,
                                  0,
                                  draw(random, 1, 100),
                                  1 << 20,
                                  std::int64_t{1} << 40,
                                  std::numeric_limits<std::int64_t>::max()};
  return extents[draw(random, 0, 6)];
}

void damage(std::vector<std::int32_t>& array, Random& random) {
  if (array.empty()) return;
  const auto pick = [&] {
    return static_cast<std::size_t>(draw(random, 0, static_cast<std::int64_t>(array.size()) - 1));
  };
  switch (draw(random, 0, 3)) {
    case 0:
      array[pick()] = random_garbage(random);
      break;
    case 1:
      std::swap(array[pick()], array[pick()]);
      break;
    case 2:
      array[pick()] = array[pick()];
      break;
    default:  // what uninitialised memory looks like
      std::generate(array.begin(), array.end(), [&] { return random_garbage(random); });
  }
}

/// A random pattern whose index arrays hold `slots` entries, as the tensors of
/// a layer do: pointers up to `slots` may be looked up.
PatternArrays layer_pattern(Random& random) {
  const test::Shape shape{draw(random, 1, 30), draw(random, 1, 30), draw(random, 1, 4),
                          draw(random, 1, 4)};
  PatternArrays pattern = test::random_pattern(shape, 0.4, draw(random, 0, 4), random);
  for (auto* array : {&pattern.col, &pattern.ids, &pattern.row, &pattern.t_ids}) {
    array->resize(static_cast<std::size_t>(pattern.slots));
    array->shrink_to_fit();
  }
  return pattern;
}

constexpr int rounds = 20000;

TEST(Corruption, ChecksAcceptExactlyWhatIsValid) {
  Random random(2024);
  int refused = 0;
  for (int round = 0; round < rounds; ++round) {
    PatternArrays pattern = layer_pattern(random);
    ASSERT_TRUE(validate(pattern.view()).ok());
    ASSERT_TRUE(check_transpose_bounds(pattern.view()).ok());

    std::vector<std::int32_t>* const arrays[] = {&pattern.crow, &pattern.col, &pattern.ids,
                                                 &pattern.ccol, &pattern.row, &pattern.t_ids};
    for (std::int64_t hits = draw(random, 1, 3); hits > 0; --hits) {
      damage(*arrays[draw(random, 0, 5)], random);
    }
    const PatternView view = pattern.view();
    const Status status = validate(view);
    ASSERT_EQ(status.ok(), valid(pattern)) << status.message();
    ASSERT_EQ(check_bounds(view).ok(),
              in_bounds(pattern.crow, pattern.col, pattern.ids, view.n_block_cols(), view.slots));
    ASSERT_EQ(check_transpose_bounds(view).ok(),
              in_bounds(pattern.ccol, pattern.row, pattern.t_ids, view.n_block_rows(), view.slots));
    if (!status.ok()) {
      ++refused;
      ASSERT_FALSE(status.message().empty());
    }
  }
  EXPECT_GT(refused, rounds / 4);
  EXPECT_LT(refused, rounds);
}

TEST(Corruption, CreateRefusesWrongLengthsAndExtents) {
  Random random(2025);
  int accepted = 0;
  for (int round = 0; round < rounds; ++round) {
    PatternArrays pattern = layer_pattern(random);
    const auto blocks = static_cast<std::size_t>(pattern.crow.back());
    pattern.col.resize(blocks);
    pattern.ids.resize(blocks);
    std::vector<std::int32_t>* const arrays[] = {&pattern.crow, &pattern.col, &pattern.ids};
    std::int64_t* const extents[] = {&pattern.shape.rows, &pattern.shape.cols,
                                     &pattern.shape.block_height, &pattern.shape.block_width,
                                     &pattern.slots};
    switch (draw(random, 0, 3)) {
      case 0:
        damage(*arrays[draw(random, 0, 2)], random);
        break;
      case 1:  // truncated or padded, as in a damaged file
        arrays[draw(random, 0, 2)]->resize(static_cast<std::size_t>(draw(random, 0, 40)),
                                           random_garbage(random));
        break;
      case 2:
        *extents[draw(random, 0, 4)] = random_extent(random);
        break;
      default:
        *extents[draw(random, 0, 4)] = static_cast<std::int64_t>(random());
    }
    Pattern made;
    const Status status = Pattern::create(
        pattern.shape.rows, pattern.shape.cols, pattern.shape.block_height,
        pattern.shape.block_width, pattern.crow, pattern.col, pattern.ids, pattern.slots, &made);
    if (!status.ok()) {
      ASSERT_FALSE(status.message().empty());
      continue;
    }
    ++accepted;
    const PatternView view = made.view();
    ASSERT_TRUE(validate(view).ok());
    ASSERT_TRUE(check_transpose_bounds(view).ok());
    ASSERT_EQ(view.crow_indices[view.n_block_rows()], view.ccol_indices[view.n_block_cols()]);
  }
  EXPECT_GT(accepted, 0);
  EXPECT_LT(accepted, rounds);
}

TEST(Corruption, ProductsRefuseRatherThanRead) {
  Random random(2026);
  int refused = 0;
  for (int round = 0; round < rounds / 4; ++round) {
    PatternArrays pattern = layer_pattern(random);
    std::vector<std::int32_t>* const arrays[] = {&pattern.crow, &pattern.col, &pattern.ids,
                                                 &pattern.ccol, &pattern.row, &pattern.t_ids};
    damage(*arrays[draw(random, 0, 5)], random);
    constexpr std::int64_t tokens = 3;
    const test::Shape& s = pattern.shape;
    std::vector<float> x(static_cast<std::size_t>(tokens * s.cols), 1.0f);
    std::vector<float> y(static_cast<std::size_t>(tokens * s.rows), 1.0f);
    std::vector<float> values(
        static_cast<std::size_t>(pattern.slots * s.block_height * s.block_width), 1.0f);
    const PatternView view = pattern.view();
    cpu::ForwardArgs forward;
    forward.pattern = view;
    forward.tokens = tokens;
    forward.x = x.data();
    forward.ldx = s.cols;
    forward.values = values.data();
    forward.y = y.data();
    forward.ldy = s.rows;
    EXPECT_EQ(cpu::forward(forward, serial_executor()).ok(), check_bounds(view).ok());
    cpu::InputGradientArgs input;
    input.pattern = view;
    input.tokens = tokens;
    input.dy = y.data();
    input.lddy = s.rows;
    input.values = values.data();
    input.dx = x.data();
    input.lddx = s.cols;
    const bool input_ran = cpu::input_gradient(input, serial_executor()).ok();
    EXPECT_EQ(input_ran, check_transpose_bounds(view).ok());
    cpu::WeightGradientArgs weight;
    weight.pattern = view;
    weight.tokens = tokens;
    weight.dy = y.data();
    weight.lddy = s.rows;
    weight.x = x.data();
    weight.ldx = s.cols;
    weight.dvalues = values.data();
    const bool weight_ran = cpu::weight_gradient(weight, serial_executor()).ok();
    EXPECT_EQ(weight_ran, check_bounds(view).ok());
    refused += !weight_ran;
  }
  EXPECT_GT(refused, 0);
}

}  // namespace
}  // namespace block_sparse
