// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <numeric>
#include <thread>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/spmm/schedule.h"

namespace block_sparse::cpu {
namespace {

constexpr int threads = 16;
constexpr std::int64_t lines = 96, columns = 24, tokens = 1024;

/// Blocks of each line.
using Counts = std::vector<std::int32_t>;

Counts even(std::int32_t blocks_of_a_line) {
  return Counts(static_cast<std::size_t>(lines), blocks_of_a_line);
}

/// A line with all it can have among others with few.
Counts one_full_line(std::int32_t others) {
  Counts counts = even(others);
  counts[lines / 2] = columns;
  return counts;
}

/// Shares of 1, 1/2, 1/3, … as far as there are columns; one line in sixteen is empty.
Counts power_law(double most) {
  Counts counts = even(0);
  for (std::size_t i = 0; i < counts.size(); ++i) {
    const double share = i % 16 == 15 ? 0 : most / static_cast<double>(i + 1);
    // Long lines are not neighbours.
    counts[i * 37 % counts.size()] =
        static_cast<std::int32_t>(std::min(share, static_cast<double>(columns)));
  }
  return counts;
}

spmm::Operands operands_of(const Counts& counts, std::vector<std::int32_t>& pointers) {
  pointers.assign(counts.size() + 1, 0);
  std::partial_sum(counts.begin(), counts.end(), pointers.begin() + 1);
  spmm::Operands op{};
  op.pointers = pointers.data();
  op.lines = lines;
  op.line_extent = op.reduce_extent = 32;
  op.outputs = 32 * lines;
  op.reduced = 32 * columns;
  return op;
}

/// Blocks times tokens of the thread that has most, where each takes the next piece when it is
/// done, over the mean.
double imbalance(const Counts& counts) {
  std::vector<std::int32_t> pointers;
  const spmm::Operands op = operands_of(counts, pointers);
  const spmm::Plan cut = spmm::plan(op, tokens, spmm::register_costs, threads);
  std::vector<std::int64_t> busy(threads);
  std::int64_t all = 0;
  for (std::int64_t piece = 0; piece < cut.pieces(); ++piece) {
    const std::int64_t part = cut.token_part_of(piece);
    const Range of_piece = cut.lines_of(piece);
    const std::int64_t work =
        (tokens * (part + 1) / cut.token_parts - tokens * part / cut.token_parts) *
        (pointers[static_cast<std::size_t>(of_piece.end)] -
         pointers[static_cast<std::size_t>(of_piece.begin)]);
    *std::min_element(busy.begin(), busy.end()) += work;
    all += work;
  }
  EXPECT_EQ(all, tokens * pointers.back());
  return static_cast<double>(*std::max_element(busy.begin(), busy.end())) * threads /
         static_cast<double>(all);
}

TEST(Plan, ThreadsGetEqualSharesOfUnevenPatterns) {
  EXPECT_LT(imbalance(even(12)), 1.05);
  EXPECT_LT(imbalance(even(1)), 1.1);
  EXPECT_LT(imbalance(one_full_line(1)), 1.15);
  EXPECT_LT(imbalance(one_full_line(0)), 1.15);
  EXPECT_LT(imbalance(power_law(24)), 1.15);
  EXPECT_LT(imbalance(power_law(200)), 1.15);
}

TEST(Plan, FewTokensAreNotCutFurtherThanTheyGo) {
  std::vector<std::int32_t> pointers;
  for (const std::int64_t few : {1, 3}) {
    const spmm::Plan cut =
        spmm::plan(operands_of(even(12), pointers), few, spmm::register_costs, threads);
    EXPECT_LE(cut.token_parts, few);
    std::int64_t covered = 0;
    for (const Range part : cut.line_parts) covered += part.end - part.begin;
    EXPECT_EQ(covered, lines);
  }
}

/// Runs the parts one after the other, the last one first, as a pool may.
class Backwards final : public Executor {
 public:
  int concurrency() const override { return 3; }
  void parallel_for(std::int64_t tasks, RangeFunction body) const override {
    for (std::int64_t i = tasks; i > 0; --i) body(i - 1, i);
  }
};

TEST(Tasks, EachRunsOnceWhateverThePoolDoes) {
  for (const std::int64_t tasks : {0, 1, 2, 100}) {
    std::vector<int> runs(static_cast<std::size_t>(tasks));
    const Status status = run_tasks(Backwards(), tasks, 64, [&](std::int64_t task, void* scratch) {
      EXPECT_NE(scratch, nullptr);
      ++runs[static_cast<std::size_t>(task)];
    });
    EXPECT_TRUE(status.ok());
    EXPECT_EQ(runs, std::vector<int>(static_cast<std::size_t>(tasks), 1));
  }
}

TEST(Tasks, AFreeThreadTakesOverWhatASlowOneHasNotBegun) {
  const auto pool = make_thread_pool(2);
  std::atomic<int> done{0};
  const Status status = run_tasks(*pool, 9, 64, [&](std::int64_t task, void*) {
    // The first waits for all others, which a fixed share of it would never let begin.
    if (task == 0) {
      while (done.load() < 8) std::this_thread::yield();
    } else {
      ++done;
    }
  });
  EXPECT_TRUE(status.ok());
  EXPECT_EQ(done.load(), 8);
}

}  // namespace
}  // namespace block_sparse::cpu
