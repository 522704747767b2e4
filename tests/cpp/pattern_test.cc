// SPDX-License-Identifier: Apache-2.0
#include "block_sparse/pattern.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "support.h"

namespace block_sparse {
namespace {

using test::PatternArrays;
using test::Random;
using test::random_pattern;

/// (6, 12) in blocks of (2, 3), 5 blocks in 7 slots:
///   x . x .
///   . . . .
///   x x . x
PatternArrays example() {
  return {.shape = {6, 12, 2, 3},
          .slots = 7,
          .crow = {0, 2, 2, 5},
          .col = {0, 2, 0, 1, 3},
          .ids = {4, 0, 6, 1, 2},
          .ccol = {0, 2, 3, 4, 5},
          .row = {0, 2, 2, 0, 2},
          .t_ids = {4, 6, 1, 0, 2}};
}

TEST(Validate, AcceptsAValidPattern) {
  const PatternArrays pattern = example();
  EXPECT_TRUE(validate(pattern.view()).ok());
  EXPECT_TRUE(check_bounds(pattern.view()).ok());
  EXPECT_TRUE(check_transpose_bounds(pattern.view()).ok());
}

TEST(Validate, AcceptsAPatternWithoutBlocks) {
  const PatternArrays none{.shape = {6, 12, 2, 3},
                           .slots = 0,
                           .crow = {0, 0, 0, 0},
                           .col = {},
                           .ids = {},
                           .ccol = {0, 0, 0, 0, 0},
                           .row = {},
                           .t_ids = {}};
  EXPECT_TRUE(validate(none.view()).ok());
  EXPECT_TRUE(check_transpose_bounds(none.view()).ok());
}

TEST(Validate, AcceptsAMatrixWithoutRows) {
  const PatternArrays none{.shape = {0, 12, 2, 3},
                           .slots = 0,
                           .crow = {0},
                           .col = {},
                           .ids = {},
                           .ccol = {0, 0, 0, 0, 0},
                           .row = {},
                           .t_ids = {}};
  EXPECT_TRUE(validate(none.view()).ok());
}

struct Refused {
  const char* name;
  std::function<void(PatternArrays&)> damage;
  const char* message;
  bool by_bounds = true;  // also by check_bounds, or by validate alone
};

void PrintTo(const Refused& refused, std::ostream* out) { *out << refused.name; }

class ValidateRefuses : public testing::TestWithParam<Refused> {};

TEST_P(ValidateRefuses, InOneSentence) {
  PatternArrays pattern = example();
  GetParam().damage(pattern);
  const Status status = validate(pattern.view());
  EXPECT_EQ(status.code(), StatusCode::invalid_argument);
  EXPECT_EQ(status.message(), GetParam().message);
  const Status bounds = check_bounds(pattern.view());
  EXPECT_EQ(bounds.ok(), !GetParam().by_bounds);
  EXPECT_EQ(bounds.message(), GetParam().by_bounds ? GetParam().message : "");
}

constexpr std::int64_t int64_max = std::numeric_limits<std::int64_t>::max();

INSTANTIATE_TEST_SUITE_P(
    Pattern, ValidateRefuses,
    testing::Values(
        Refused{"first_pointer", [](PatternArrays& p) { p.crow[0] = 1; },
                "crow_indices[0] is 1, expected 0"},
        Refused{"decreasing_pointer", [](PatternArrays& p) { p.crow[2] = 1; },
                "crow_indices[2] is 1, expected at least the 2 before it"},
        Refused{"negative_pointer", [](PatternArrays& p) { p.crow[1] = -4; },
                "crow_indices[1] is -4, expected at least the 0 before it"},
        Refused{"more_blocks_than_slots", [](PatternArrays& p) { p.slots = 4; },
                "crow_indices[3] is 5, expected at most the 4 slots of values"},
        Refused{"column_too_large", [](PatternArrays& p) { p.col[1] = 4; },
                "col_indices[1] is 4, expected at least 0 and below 4"},
        Refused{"column_negative", [](PatternArrays& p) { p.col[4] = -1; },
                "col_indices[4] is -1, expected at least 0 and below 4"},
        Refused{"slot_too_large", [](PatternArrays& p) { p.ids[0] = 7; },
                "block_ids[0] is 7, expected at least 0 and below 7"},
        Refused{"slot_negative",
                [](PatternArrays& p) { p.ids[2] = std::numeric_limits<std::int32_t>::min(); },
                "block_ids[2] is -2147483648, expected at least 0 and below 7"},
        Refused{"columns_unsorted", [](PatternArrays& p) { std::swap(p.col[2], p.col[3]); },
                "col_indices[3] is 0, expected more than the 1 before it in block row 2", false},
        Refused{"column_repeated", [](PatternArrays& p) { p.col[1] = 0; },
                "col_indices[1] is 0, expected more than the 0 before it in block row 0", false},
        Refused{"slot_repeated", [](PatternArrays& p) { p.ids[3] = 4; },
                "block_ids[3] is 4, expected a slot that no block before it has", false},
        Refused{"block_height_zero", [](PatternArrays& p) { p.shape.block_height = 0; },
                "block_height is 0, expected at least 1"},
        Refused{"block_width_negative", [](PatternArrays& p) { p.shape.block_width = -3; },
                "block_width is -3, expected at least 1"},
        Refused{"rows_negative", [](PatternArrays& p) { p.shape.rows = -6; },
                "rows is -6, expected at least 0"},
        Refused{"cols_negative", [](PatternArrays& p) { p.shape.cols = -1; },
                "cols is -1, expected at least 0"},
        Refused{"slots_negative", [](PatternArrays& p) { p.slots = -1; },
                "slots is -1, expected a number from 0 to 2147483647"},
        Refused{"slots_beyond_int32", [](PatternArrays& p) { p.slots = std::int64_t{1} << 31; },
                "slots is 2147483648, expected a number from 0 to 2147483647"},
        Refused{"block_rows_beyond_int32",
                [](PatternArrays& p) { p.shape.rows = std::int64_t{1} << 40; },
                "the number of block rows is 549755813888, expected fewer than 2147483647"},
        Refused{"rows_overflow", [](PatternArrays& p) { p.shape.rows = int64_max; },
                "the number of block rows is 4611686018427387903, expected fewer than 2147483647"},
        Refused{"block_columns_beyond_int32",
                [](PatternArrays& p) { p.shape.cols = std::int64_t{3} << 31; },
                "the number of block columns is 2147483648, expected fewer than 2147483647"},
        Refused{"values_too_large",
                [](PatternArrays& p) {
                  p.shape.block_height = std::int64_t{1} << 40;
                  p.shape.block_width = std::int64_t{1} << 40;
                },
                "values of shape (7, 1099511627776, 1099511627776) is too large, expected below "
                "2^63 bytes"}),
    [](const testing::TestParamInfo<Refused>& tested) { return std::string(tested.param.name); });

TEST(Validate, RefusesNullArrays) {
  const PatternArrays pattern = example();
  PatternView view = pattern.view();
  view.crow_indices = nullptr;
  EXPECT_EQ(validate(view).message(), "crow_indices is null, expected 4 pointers");
  view = pattern.view();
  view.col_indices = nullptr;
  EXPECT_EQ(validate(view).message(), "col_indices is null, expected 5 entries");
  view = pattern.view();
  view.block_ids = nullptr;
  EXPECT_EQ(validate(view).message(), "block_ids is null, expected 5 entries");
  view = pattern.view();
  view.ccol_indices = nullptr;
  EXPECT_EQ(check_transpose_bounds(view).message(), "ccol_indices is null, expected 5 pointers");
}

TEST(CheckTransposeBounds, LooksAtTheTransposedArrays) {
  PatternArrays pattern = example();
  pattern.ccol[4] = 8;
  EXPECT_EQ(check_transpose_bounds(pattern.view()).message(),
            "ccol_indices[4] is 8, expected at most the 7 slots of values");
  pattern = example();
  pattern.row[3] = 3;
  EXPECT_EQ(check_transpose_bounds(pattern.view()).message(),
            "row_indices[3] is 3, expected at least 0 and below 3");
  pattern = example();
  pattern.t_ids[0] = -1;
  EXPECT_EQ(check_transpose_bounds(pattern.view()).message(),
            "t_block_ids[0] is -1, expected at least 0 and below 7");
  EXPECT_TRUE(check_bounds(pattern.view()).ok());
}

TEST(CheckTransposeBounds, ReadsOnlyTheTransposedArrays) {
  const PatternArrays pattern = example();
  PatternView view = pattern.view();
  view.crow_indices = nullptr;
  view.col_indices = nullptr;
  view.block_ids = nullptr;
  EXPECT_TRUE(check_transpose_bounds(view).ok());
}

TEST(Transpose, SortsBlocksByColumnAndRow) {
  Random random(7);
  for (int i = 0; i < 300; ++i) {
    const test::Shape shape{test::draw(random, 1, 40), test::draw(random, 1, 40),
                            test::draw(random, 1, 5), test::draw(random, 1, 5)};
    const PatternArrays expected = random_pattern(shape, 0.4, test::draw(random, 0, 5), random);
    std::vector<std::int32_t> ccol(expected.ccol.size(), -1);
    std::vector<std::int32_t> row(expected.row.size(), -1);
    std::vector<std::int32_t> t_ids(expected.t_ids.size(), -1);
    transpose(expected.view(), ccol.data(), row.data(), t_ids.data());
    ASSERT_EQ(ccol, expected.ccol) << to_string(shape);
    ASSERT_EQ(row, expected.row) << to_string(shape);
    ASSERT_EQ(t_ids, expected.t_ids) << to_string(shape);
  }
}

std::vector<std::int32_t> pointers_of(const std::vector<std::int32_t>& blocks) {
  std::vector<std::int32_t> pointers(blocks.size() + 1, 0);
  std::partial_sum(blocks.begin(), blocks.end(), pointers.begin() + 1);
  return pointers;
}

using Boundaries = std::vector<std::int64_t>;

TEST(Partition, CutsEqualLinesEqually) {
  const auto pointers = pointers_of({2, 2, 2, 2, 2, 2});
  EXPECT_EQ(partition_by_blocks(pointers.data(), 6, 3), (Boundaries{0, 2, 4, 6}));
  EXPECT_EQ(partition_by_blocks(pointers.data(), 6, 1), (Boundaries{0, 6}));
  EXPECT_EQ(partition_by_blocks(pointers.data(), 6, 0), (Boundaries{0, 6}));
}

TEST(Partition, FollowsTheBlocksNotTheLines) {
  const auto pointers = pointers_of({9, 1, 1, 1, 1, 1, 1, 1, 1, 1});
  EXPECT_EQ(partition_by_blocks(pointers.data(), 10, 2), (Boundaries{0, 1, 10}));
}

TEST(Partition, CountsEmptyLinesAsAFractionOfABlock) {
  const auto pointers = pointers_of({0, 0, 0, 0, 1});
  EXPECT_EQ(partition_by_blocks(pointers.data(), 5, 2, 0.25), (Boundaries{0, 4, 5}));
  EXPECT_EQ(partition_by_blocks(pointers.data(), 5, 5, 1.0), (Boundaries{0, 1, 2, 3, 4, 5}));
}

TEST(Partition, HandlesNoLinesAndMorePartsThanLines) {
  const auto none = pointers_of({});
  EXPECT_EQ(partition_by_blocks(none.data(), 0, 3), (Boundaries{0, 0, 0, 0}));
  const auto two = pointers_of({1, 1});
  const Boundaries boundaries = partition_by_blocks(two.data(), 2, 5);
  EXPECT_EQ(boundaries.front(), 0);
  EXPECT_EQ(boundaries.back(), 2);
  EXPECT_TRUE(std::is_sorted(boundaries.begin(), boundaries.end()));
}

TEST(Partition, NoPartExceedsItsShareByMoreThanALine) {
  Random random(11);
  for (int i = 0; i < 200; ++i) {
    std::vector<std::int32_t> blocks(static_cast<std::size_t>(test::draw(random, 1, 60)));
    for (auto& count : blocks) count = static_cast<std::int32_t>(test::draw(random, 0, 20));
    const auto pointers = pointers_of(blocks);
    const int parts = static_cast<int>(test::draw(random, 1, 9));
    const auto boundaries =
        partition_by_blocks(pointers.data(), static_cast<std::int64_t>(blocks.size()), parts);
    ASSERT_EQ(boundaries.size(), static_cast<std::size_t>(parts) + 1);
    double total = 0;
    for (const auto count : blocks) total += count > 0 ? count : 0.25;
    for (std::size_t part = 0; part + 1 < boundaries.size(); ++part) {
      ASSERT_LE(boundaries[part], boundaries[part + 1]);
      const auto begin = static_cast<std::size_t>(boundaries[part]);
      const auto end = static_cast<std::size_t>(boundaries[part + 1]);
      const auto held = pointers[end] - pointers[begin];
      ASSERT_LE(held, total / parts + 20);
    }
  }
}

Status create(const PatternArrays& p, Pattern* out) {
  return Pattern::create(p.shape.rows, p.shape.cols, p.shape.block_height, p.shape.block_width,
                         p.crow, p.col, p.ids, p.slots, out);
}

TEST(Pattern, OwnsACopyAndTheTranspose) {
  PatternArrays arrays = example();
  Pattern pattern;
  ASSERT_TRUE(create(arrays, &pattern).ok());
  const PatternArrays expected = example();
  arrays.col.assign(arrays.col.size(), -1);
  const Pattern copy = pattern;
  for (const PatternView& view : {pattern.view(), copy.view()}) {
    EXPECT_EQ(view.rows, 6);
    EXPECT_EQ(view.cols, 12);
    EXPECT_EQ(view.n_block_rows(), 3);
    EXPECT_EQ(view.n_block_cols(), 4);
    EXPECT_EQ(view.n_blocks(), 5);
    EXPECT_EQ(view.slots, 7);
    EXPECT_EQ(std::vector(view.col_indices, view.col_indices + 5), expected.col);
    EXPECT_EQ(std::vector(view.block_ids, view.block_ids + 5), expected.ids);
    EXPECT_EQ(std::vector(view.ccol_indices, view.ccol_indices + 5), expected.ccol);
    EXPECT_EQ(std::vector(view.row_indices, view.row_indices + 5), expected.row);
    EXPECT_EQ(std::vector(view.t_block_ids, view.t_block_ids + 5), expected.t_ids);
  }
}

TEST(Pattern, NumbersTheSlotsItself) {
  PatternArrays arrays = example();
  arrays.ids.clear();
  Pattern pattern;
  ASSERT_TRUE(create(arrays, &pattern).ok());
  const PatternView view = pattern.view();
  EXPECT_EQ(std::vector(view.block_ids, view.block_ids + 5),
            (std::vector<std::int32_t>{0, 1, 2, 3, 4}));
}

TEST(Pattern, IgnoresWhatLiesBeyondTheStoredBlocks) {
  // As a layer saves them: an entry for each slot, the free slots last.
  PatternArrays arrays = example();
  arrays.col.resize(7, 0);
  arrays.ids.push_back(3);
  arrays.ids.push_back(5);
  Pattern pattern;
  ASSERT_TRUE(create(arrays, &pattern).ok());
  EXPECT_EQ(pattern.view().n_blocks(), 5);
  EXPECT_EQ(std::vector(pattern.view().t_block_ids, pattern.view().t_block_ids + 5),
            example().t_ids);
}

TEST(Pattern, RefusesArraysOfTheWrongLength) {
  Pattern pattern;
  PatternArrays arrays = example();
  arrays.crow.push_back(5);
  EXPECT_EQ(create(arrays, &pattern).message(),
            "crow_indices has 5 entries, expected 4 (the block rows and one)");
  arrays = example();
  arrays.crow.clear();
  EXPECT_EQ(create(arrays, &pattern).message(),
            "crow_indices has 0 entries, expected 4 (the block rows and one)");
  arrays = example();
  arrays.col.pop_back();
  EXPECT_EQ(create(arrays, &pattern).message(),
            "col_indices has 4 entries, expected from 5 (the stored blocks) to 7 (the slots)");
  arrays = example();
  arrays.ids.resize(8);
  EXPECT_EQ(create(arrays, &pattern).message(),
            "block_ids has 8 entries, expected from 5 (the stored blocks) to 7 (the slots)");
  arrays = example();
  arrays.crow[3] = -5;
  EXPECT_EQ(create(arrays, &pattern).message(),
            "crow_indices[3] is -5, expected at least the 2 before it");
  EXPECT_EQ(create(example(), nullptr).message(), "out is null, expected a Pattern to fill");
}

TEST(Pattern, StaysAsItWasWhenRefused) {
  Pattern pattern;
  ASSERT_TRUE(create(example(), &pattern).ok());
  PatternArrays bad = example();
  bad.col[0] = 9;
  EXPECT_FALSE(create(bad, &pattern).ok());
  EXPECT_EQ(pattern.view().n_blocks(), 5);
  EXPECT_EQ(pattern.view().col_indices[0], 0);
}

TEST(Pattern, ThatWasNeverCreatedIsRefused) { EXPECT_FALSE(check_bounds(Pattern().view()).ok()); }

}  // namespace
}  // namespace block_sparse
