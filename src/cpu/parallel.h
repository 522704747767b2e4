// SPDX-License-Identifier: Apache-2.0
#pragma once

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

/// Calls body(task, scratch) for each task, `scratch_bytes` of the running
/// thread's own scratch in hand. A missing one ends in a status instead of an
/// exception, which a foreign thread pool might not carry.
template <class Body>
Status run_tasks(const Executor& executor, std::int64_t tasks, std::size_t scratch_bytes,
                 const Body& body) {
  std::atomic<bool> out_of_memory{false};
  executor.parallel_for(tasks, [&](std::int64_t begin, std::int64_t end) {
    void* scratch = thread_scratch(ScratchUse::kernel, scratch_bytes);
    if (scratch == nullptr) {
      out_of_memory.store(true, std::memory_order_relaxed);
      return;
    }
    for (std::int64_t task = begin; task < end; ++task) body(task, scratch);
  });
  return out_of_memory.load() ? no_scratch() : Status();
}

}  // namespace block_sparse::cpu
