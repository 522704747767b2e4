// SPDX-License-Identifier: Apache-2.0
#include "cuda/plan.h"

#include <algorithm>
#include <set>
#include <utility>

#include "layer.h"

namespace block_sparse::cuda::test {
namespace {

/// A plan's tables of one orientation, on the host.
struct Tables {
  std::vector<std::int32_t> order, schedule;

  Tables(const DeviceLayer& d, PlanTable order_table, PlanTable schedule_table) {
    const std::vector<std::uint8_t> bytes = d.plan.bytes();
    std::vector<std::int32_t> plan(bytes.size() / sizeof(std::int32_t));
    std::memcpy(plan.data(), bytes.data(), bytes.size());
    const auto from = [&](PlanTable table) {
      const std::int32_t* begin = plan_table(d.pattern, plan.data(), table);
      return std::vector<std::int32_t>(begin, std::as_const(plan).data() + plan.size());
    };
    order = from(order_table);
    schedule = from(schedule_table);
  }
};

struct Side {
  const std::vector<std::int32_t>& pointers;
  const std::vector<std::int32_t>& others;
  std::int64_t height;  // of the lines
  Tables tables;

  std::int64_t lines() const { return static_cast<std::int64_t>(pointers.size()) - 1; }
  std::set<std::int32_t> positions(std::int64_t line) const {
    const auto i = static_cast<std::size_t>(line);
    return {others.begin() + pointers[i], others.begin() + pointers[i + 1]};
  }
  /// Boxes of x, 64 features or, for lower lines, 32, that a pair of tiles of 64 outputs reads.
  std::size_t boxes_of_pair(std::int64_t pair) const {
    const std::int64_t blocks_a_box = height == 16 ? 2 : 1;
    std::set<std::int64_t> all;
    for (std::int64_t out = pair * 128; out < (pair + 1) * 128;
         out += std::min<std::int64_t>(height, 64)) {
      const std::int64_t rank = out / height;
      if (rank >= lines()) continue;
      for (const std::int32_t p : positions(tables.order[static_cast<std::size_t>(rank)])) {
        all.insert(p / blocks_a_box);
      }
    }
    return all.size();
  }
};

std::vector<Side> sides_of(const Layer& l, const DeviceLayer& d) {
  const bool low = l.c.block_height < 64;
  const PlanTable rows = low ? PlanTable::row_lines : PlanTable::row_tiles;
  const PlanTable columns = low ? PlanTable::column_lines : PlanTable::column_tiles;
  return {{l.crow, l.col, l.c.block_height, Tables(d, rows, PlanTable::row_schedule)},
          {l.ccol, l.row, l.c.block_width, Tables(d, columns, PlanTable::column_schedule)}};
}

class Plan : public testing::TestWithParam<LayerCase> {};

TEST_P(Plan, EachLineHasOnePlaceInTheOrder) {
  const Layer l(GetParam(), 21);
  const DeviceLayer d(l);
  for (const Side& side : sides_of(l, d)) {
    std::vector<std::int32_t> order(side.tables.order.begin(),
                                    side.tables.order.begin() + side.lines());
    std::sort(order.begin(), order.end());
    for (std::int64_t i = 0; i < side.lines(); ++i) {
      EXPECT_EQ(order[static_cast<std::size_t>(i)], i);
    }
  }
}

TEST_P(Plan, EachItemIsGivenToOneCluster) {
  const Layer l(GetParam(), 22);
  const DeviceLayer d(l);
  for (const Side& side : sides_of(l, d)) {
    const std::int32_t* schedule = side.tables.schedule.data();
    const std::int64_t pairs = Schedule::pairs_of(side.lines() * side.height);
    const int levels = Schedule::levels(pairs);
    const std::int32_t clusters = schedule[0];
    ASSERT_GT(clusters, 0);
    for (int level = 0; level < levels; ++level) {
      const std::int32_t* offsets = schedule + Schedule::offsets(level);
      ASSERT_EQ(offsets[0], Schedule::items(levels, pairs, level));
      ASSERT_EQ(offsets[clusters], Schedule::items(levels, pairs, level + 1));
      std::set<std::pair<int, int>> seen;
      std::size_t most = 0, total = 0, heaviest = 0;
      for (int c = 0; c < clusters; ++c) {
        std::size_t load = 0;
        for (int i = offsets[c]; i < offsets[c + 1]; ++i) {
          const int pair = Schedule::pair_of(schedule[i]);
          const int tile = Schedule::token_tile_of(schedule[i]);
          ASSERT_LT(pair, pairs);
          ASSERT_LT(tile, 1 << level);
          EXPECT_TRUE(seen.emplace(pair, tile).second) << "pair " << pair << ", tile " << tile;
          const std::size_t size = side.boxes_of_pair(pair) + 1;
          load += size;
          heaviest = std::max(heaviest, size);
        }
        most = std::max(most, load);
        total += load;
      }
      EXPECT_EQ(seen.size(), static_cast<std::size_t>(pairs) << level);
      // Whoever is free first goes on: nobody ends later than a tile after the others,
      // by a measure of tiles that differs a little from the plan's own.
      EXPECT_LE(static_cast<double>(most),
                1.1 * static_cast<double>(total) / clusters + 1.5 * static_cast<double>(heaviest));
    }
  }
}

const LayerCase kCases[] = {
    {.out = 1024, .in = 768, .block_height = 64, .block_width = 64, .density = 0.2},
    {.out = 1024, .in = 768, .block_height = 128, .block_width = 128, .density = 0.3},
    {.out = 8192, .in = 4096, .block_height = 64, .block_width = 64, .density = 0.05},
    {.out = 960, .in = 320, .block_height = 192, .block_width = 64, .density = 0.5},
    {.out = 448, .in = 832, .block_height = 64, .block_width = 64, .fill = Fill::one_full_row},
    {.out = 64, .in = 64, .block_height = 64, .block_width = 64, .fill = Fill::empty},
    {.out = 4096, .in = 800, .block_height = 32, .block_width = 32, .density = 0.1},
    {.out = 2048, .in = 1360, .block_height = 16, .block_width = 16, .density = 0.2},
    // Groups of four, two and one that are left over; more lines than are compared at a time.
    {.out = 368, .in = 240, .block_height = 16, .block_width = 16, .density = 0.3},
    {.out = 17408, .in = 112, .block_height = 16, .block_width = 16, .density = 0.3},
    {.out = 64, .in = 32, .block_height = 32, .block_width = 32, .fill = Fill::empty},
};
INSTANTIATE_TEST_SUITE_P(Tiles, Plan, testing::ValuesIn(kCases));

// Kinds of rows that share nothing: whatever their order, equals make groups.
TEST(PlanGroups, LinesThatShareTheirPositionsAreTogether) {
  for (const std::int32_t side : {16, 32, 64}) {
    SCOPED_TRACE("blocks of " + std::to_string(side));
    const std::int32_t lines = 128 / side * 6;
    Layer l({.out = lines * side,
             .in = 16 * side,
             .block_height = side,
             .block_width = side,
             .density = 1},
            23);
    l.crow = {0};
    l.col.clear();
    for (std::int32_t r = 0; r < lines; ++r) {
      const std::int32_t first = r * 7 % 3 * 4;
      for (std::int32_t k = 0; k < 4; ++k) l.col.push_back(first + k);
      l.crow.push_back(static_cast<std::int32_t>(l.col.size()));
    }
    const DeviceBuffer crow(l.crow), col(l.col);
    DeviceLayer d(l);
    d.pattern.crow_indices = crow.as<std::int32_t>();
    d.pattern.col_indices = col.as<std::int32_t>();
    ASSERT_TRUE(build_plan(d.pattern, d.plan.as<std::int32_t>(), nullptr).ok());
    BLOCK_SPARSE_CUDA_OK(cudaDeviceSynchronize());
    const PlanTable order = side < 64 ? PlanTable::row_lines : PlanTable::row_tiles;
    const Side rows{l.crow, l.col, side, Tables(d, order, PlanTable::row_schedule)};
    for (std::int64_t pair = 0; pair < 6; ++pair) {
      EXPECT_EQ(rows.boxes_of_pair(pair), side == 16 ? 2u : 4u) << "pair " << pair;
    }
  }
}

}  // namespace
}  // namespace block_sparse::cuda::test
