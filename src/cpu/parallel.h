// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "block_sparse/executor.h"
#include "block_sparse/status.h"
#include "common/scratch.h"
#include "cpu/scratch.h"

namespace block_sparse::cpu {

/// Work below this many multiply-adds is over before other threads have woken.
constexpr std::int64_t serial_work = std::int64_t{1} << 19;

/// What a further task for a thread must be worth at least, in multiply-adds: 10 microseconds,
/// since what it reads and writes is likely in the caches of another core.
constexpr double further_task = 5e5;
/// Tasks that a thread gets at most, so that threads which are faster or got the shorter ones take
/// over some of the others'.
constexpr int tasks_of_a_thread = 4;

/// Calls body(task, scratch) for each task, `scratch_bytes` of the running
/// thread's own scratch in hand. Each thread begins with the task of its number, so that it finds
/// in its caches what it had in the last call; then whoever is free takes the next one, since
/// neither shared cores are equally fast nor tasks equally long. A missing scratch ends in a status
/// instead of an exception, which a foreign thread pool might not carry.
template <class Body>
Status run_tasks(const Executor& executor, std::int64_t tasks, std::size_t scratch_bytes,
                 const Body& body) {
  std::atomic<bool> out_of_memory{false};
  const std::int64_t threads = std::min<std::int64_t>(executor.concurrency(), tasks);
  std::atomic<std::int64_t> next{threads};
  executor.parallel_for(threads, [&](std::int64_t begin, std::int64_t end) {
    void* scratch = thread_scratch(ScratchUse::kernel, scratch_bytes);
    if (scratch == nullptr) {
      out_of_memory.store(true, std::memory_order_relaxed);
      return;
    }
    for (std::int64_t task = begin; task < end; ++task) body(task, scratch);
    if (tasks == threads) return;
    for (std::int64_t task = next++; task < tasks; task = next++) body(task, scratch);
  });
  return out_of_memory.load() ? no_scratch() : Status();
}

}  // namespace block_sparse::cpu
