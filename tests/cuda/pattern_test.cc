// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <functional>
#include <limits>

#include "cuda/plan.h"
#include "layer.h"

namespace block_sparse::cuda::test {
namespace {

std::vector<std::int32_t> ints_of(const DeviceBuffer& buffer) {
  const std::vector<std::uint8_t> bytes = buffer.bytes();
  std::vector<std::int32_t> ints(bytes.size() / sizeof(std::int32_t));
  std::memcpy(ints.data(), bytes.data(), bytes.size());
  return ints;
}

DeviceBuffer buffer_of_ints(std::int64_t length) {
  return DeviceBuffer(static_cast<std::size_t>(length) * sizeof(std::int32_t));
}

class Patterns : public ::testing::TestWithParam<LayerCase> {};

TEST_P(Patterns, TransposedAsOnTheHost) {
  const Layer layer(GetParam(), 21);
  const DeviceLayer device(layer);
  const DeviceBuffer ccol = buffer_of_ints(layer.block_cols() + 1);
  const DeviceBuffer row = buffer_of_ints(layer.slots());
  const DeviceBuffer t_ids = buffer_of_ints(layer.slots());
  const DeviceBuffer scratch = buffer_of_ints(transpose_pattern_scratch(device.pattern));
  for (int repeat = 0; repeat < 2; ++repeat) {  // on what the first one left
    const Status s =
        transpose_pattern(device.pattern, ccol.as<std::int32_t>(), row.as<std::int32_t>(),
                          t_ids.as<std::int32_t>(), scratch.as<std::int32_t>(), nullptr);
    ASSERT_TRUE(s.ok()) << s.message();
    EXPECT_EQ(ints_of(ccol), layer.ccol);
    EXPECT_EQ(ints_of(row), layer.row);
    EXPECT_EQ(ints_of(t_ids), layer.t_ids);
  }
}

/// What check_pattern says of the arrays of `device`.
bool valid_on(const DeviceLayer& device) {
  const DeviceBuffer scratch = buffer_of_ints(check_pattern_scratch(device.pattern));
  const Status s = check_pattern(device.pattern, scratch.as<std::int32_t>(), nullptr);
  EXPECT_TRUE(s.ok()) << s.message();
  return ints_of(scratch)[0] == 0;
}

TEST_P(Patterns, AreValid) { EXPECT_TRUE(valid_on(DeviceLayer(Layer(GetParam(), 22)))); }

INSTANTIATE_TEST_SUITE_P(
    Cases, Patterns,
    ::testing::Values(
        LayerCase{.out = 256, .in = 384, .block_height = 32, .block_width = 32},
        LayerCase{.out = 999, .in = 70, .block_height = 7, .block_width = 3},
        LayerCase{.out = 5000, .in = 1, .block_height = 1, .block_width = 1, .tokens = 1},
        LayerCase{.out = 1, .in = 5000, .block_height = 1, .block_width = 1, .tokens = 1},
        LayerCase{.out = 4096,
                  .in = 4096,
                  .block_height = 16,
                  .block_width = 16,
                  .tokens = 1,
                  .fill = Fill::power_law},
        LayerCase{.out = 1024,
                  .in = 640,
                  .block_height = 16,
                  .block_width = 16,
                  .fill = Fill::one_full_row},
        LayerCase{.out = 64, .in = 64, .block_height = 32, .block_width = 32, .fill = Fill::empty},
        LayerCase{.out = 96,
                  .in = 64,
                  .block_height = 32,
                  .block_width = 32,
                  .fill = Fill::empty,
                  .spare_slots = 0}),
    [](const auto& tested) { return name_of_case(tested.param); });

/// Each way in which an index can be wrong, applied to the host's arrays.
TEST(PatternCheck, FindsEveryDamage) {
  constexpr LayerCase kCase{.out = 256, .in = 256, .block_height = 16, .block_width = 16};
  struct Damage {
    const char* name;
    std::function<void(Layer&)> apply;
  };
  const auto n = [](const Layer& l) { return static_cast<std::size_t>(l.crow.back()); };
  const Damage damages[] = {
      {"pointers do not start at 0", [](Layer& l) { l.crow[0] = 1; }},
      {"a pointer is negative", [](Layer& l) { l.crow[3] = -5; }},
      {"pointers decrease", [](Layer& l) { l.crow[5] = l.crow[4] - 1; }},
      {"pointers end beyond the slots",
       [](Layer& l) { l.crow.back() = static_cast<std::int32_t>(l.slots()) + 1; }},
      {"a pointer is huge", [](Layer& l) { l.crow[7] = 0x7fffffff; }},
      {"a column is negative", [](Layer& l) { l.col[2] = -1; }},
      {"a column is beyond the last", [](Layer& l) { l.col[2] = 16; }},
      {"a column comes twice", [](Layer& l) { l.col[1] = l.col[0]; }},
      {"columns descend", [](Layer& l) { std::swap(l.col[0], l.col[1]); }},
      {"a slot is negative", [](Layer& l) { l.ids[4] = -1; }},
      {"a slot is beyond the last",
       [](Layer& l) { l.ids[4] = static_cast<std::int32_t>(l.slots()); }},
      {"a slot comes twice", [n](Layer& l) { l.ids[n(l) - 1] = l.ids[0]; }},
  };
  const Layer whole(kCase, 23);
  ASSERT_GE(whole.crow[1], 2) << "the damages need two blocks in the first row";
  for (const Damage& damage : damages) {
    Layer layer = whole;
    damage.apply(layer);
    EXPECT_FALSE(valid_on(DeviceLayer(layer, /*with_plan=*/false))) << damage.name;
  }
  // What lies beyond the stored blocks is not part of the pattern.
  Layer layer = whole;
  layer.col.back() = -7;
  layer.ids.back() = -7;
  EXPECT_TRUE(valid_on(DeviceLayer(layer, false)));
}

/// Nothing outside the arrays is touched (compute-sanitizer sees to it).
TEST(PatternTranspose, EndsWithAnyContent) {
  constexpr LayerCase kCase{.out = 256, .in = 256, .block_height = 16, .block_width = 16};
  Layer layer(kCase, 24);
  std::uniform_int_distribution<std::int32_t> any(std::numeric_limits<std::int32_t>::min());
  for (auto* array : {&layer.crow, &layer.col, &layer.ids}) {
    for (std::int32_t& value : *array) {
      if (layer.random() % 3 == 0) value = any(layer.random);
    }
  }
  const DeviceLayer device(layer, false);
  const DeviceBuffer scratch = buffer_of_ints(transpose_pattern_scratch(device.pattern));
  const Status s = transpose_pattern(device.pattern, device.ccol.as<std::int32_t>(),
                                     device.row.as<std::int32_t>(), device.t_ids.as<std::int32_t>(),
                                     scratch.as<std::int32_t>(), nullptr);
  ASSERT_TRUE(s.ok()) << s.message();
  BLOCK_SPARSE_CUDA_OK(cudaDeviceSynchronize());
}

/// Tiles by stored blocks, most first; of equal ones the first first.
TEST(Plan, OrdersTilesByTheirBlocks) {
  constexpr LayerCase kCase{.out = 1024,
                            .in = 512,
                            .block_height = 16,
                            .block_width = 32,
                            .density = 0.4,
                            .fill = Fill::power_law};
  const Layer layer(kCase, 25);
  const DeviceLayer device(layer);
  const std::vector<std::int32_t> plan = ints_of(device.plan);
  const auto ordered = [&](const std::vector<std::int32_t>& pointers, std::int64_t per_tile) {
    const auto lines = static_cast<std::int64_t>(pointers.size()) - 1;
    std::vector<std::pair<std::int32_t, std::int32_t>> tiles;
    for (std::int64_t tile = 0; tile * per_tile < lines; ++tile) {
      const auto begin = static_cast<std::size_t>(tile * per_tile);
      const auto end = static_cast<std::size_t>(std::min((tile + 1) * per_tile, lines));
      tiles.emplace_back(pointers[begin] - pointers[end], static_cast<std::int32_t>(tile));
    }
    std::sort(tiles.begin(), tiles.end());
    std::vector<std::int32_t> order;
    for (const auto& tile : tiles) order.push_back(tile.second);
    return order;
  };
  const auto table = [&](const std::int32_t* at, std::size_t length) {
    const std::ptrdiff_t offset = at - device.plan.as<std::int32_t>();
    return std::vector<std::int32_t>(plan.begin() + offset,
                                     plan.begin() + offset + static_cast<std::ptrdiff_t>(length));
  };
  const std::vector<std::int32_t> rows = ordered(layer.crow, 64 / 16);
  const std::vector<std::int32_t> columns = ordered(layer.ccol, 64 / 32);
  const auto* data = device.plan.as<std::int32_t>();
  EXPECT_EQ(table(row_lines(device.pattern, data).order, rows.size()), rows);
  EXPECT_EQ(table(column_lines(device.pattern, data).order, columns.size()), columns);
}

}  // namespace
}  // namespace block_sparse::cuda::test
