// SPDX-License-Identifier: Apache-2.0
#include "block_sparse/executor.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <thread>
#include <vector>

namespace block_sparse {
namespace {

void expect_each_task_once(const Executor& executor, std::int64_t tasks) {
  std::vector<std::atomic<int>> runs(static_cast<std::size_t>(tasks));
  executor.parallel_for(tasks, [&](std::int64_t begin, std::int64_t end) {
    ASSERT_LE(0, begin);
    ASSERT_LT(begin, end);
    ASSERT_LE(end, tasks);
    for (std::int64_t i = begin; i < end; ++i) ++runs[static_cast<std::size_t>(i)];
  });
  for (const auto& count : runs) ASSERT_EQ(count, 1) << tasks << " tasks";
}

TEST(SerialExecutor, RunsEachTaskOnceOnTheCaller) {
  EXPECT_EQ(serial_executor().concurrency(), 1);
  const std::thread::id caller = std::this_thread::get_id();
  serial_executor().parallel_for(
      5, [&](std::int64_t, std::int64_t) { EXPECT_EQ(std::this_thread::get_id(), caller); });
  for (const std::int64_t tasks : {0, 1, 7}) expect_each_task_once(serial_executor(), tasks);
}

TEST(ThreadPool, RunsEachTaskOnce) {
  for (const int threads : {1, 2, 5}) {
    const auto pool = make_thread_pool(threads);
    EXPECT_EQ(pool->concurrency(), threads);
    for (const std::int64_t tasks : {0, 1, 2, 3, 16, 1000}) expect_each_task_once(*pool, tasks);
  }
}

TEST(ThreadPool, BelowOneMeansOnePerHardwareThread) {
  const auto pool = make_thread_pool(0);
  EXPECT_GE(pool->concurrency(), 1);
  expect_each_task_once(*pool, 100);
}

TEST(ThreadPool, UsesItsThreadsAtTheSameTime) {
  const auto pool = make_thread_pool(3);
  std::atomic<int> arrived{0};
  // Each of three tasks waits for the others: it ends only if all run at once.
  pool->parallel_for(3, [&](std::int64_t begin, std::int64_t end) {
    ASSERT_EQ(end - begin, 1);
    ++arrived;
    while (arrived < 3) std::this_thread::yield();
  });
  EXPECT_EQ(arrived, 3);
}

TEST(ThreadPool, NestedCallsRunInPlace) {
  const auto pool = make_thread_pool(3);
  std::atomic<int> runs{0};
  pool->parallel_for(8, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      pool->parallel_for(10,
                         [&](std::int64_t b, std::int64_t e) { runs += static_cast<int>(e - b); });
    }
  });
  EXPECT_EQ(runs, 80);
}

TEST(ThreadPool, TakesCallersOneAfterTheOther) {
  const auto pool = make_thread_pool(2);
  std::atomic<int> runs{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&] {
      for (int i = 0; i < 200; ++i) {
        pool->parallel_for(
            5, [&](std::int64_t b, std::int64_t e) { runs += static_cast<int>(e - b); });
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(runs, 4 * 200 * 5);
}

TEST(ThreadPool, HandsAnExceptionToTheCallerAndGoesOn) {
  const auto pool = make_thread_pool(3);
  std::atomic<int> runs{0};
  EXPECT_THROW(pool->parallel_for(100,
                                  [&](std::int64_t begin, std::int64_t end) {
                                    runs += static_cast<int>(end - begin);
                                    if (begin == 0) throw std::runtime_error("one task failed");
                                  }),
               std::runtime_error);
  EXPECT_EQ(runs, 100);
  expect_each_task_once(*pool, 100);
}

}  // namespace
}  // namespace block_sparse
