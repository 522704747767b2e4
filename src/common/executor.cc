// SPDX-License-Identifier: Apache-2.0
#include "block_sparse/executor.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace block_sparse {
namespace {

class SerialExecutor final : public Executor {
 public:
  int concurrency() const override { return 1; }
  void parallel_for(std::int64_t tasks, RangeFunction body) const override {
    if (tasks > 0) body(0, tasks);
  }
};

/// Set on a thread while it runs a body, so that a nested call runs in place
/// instead of waiting for the pool that it is part of.
thread_local bool inside_body = false;

class ThreadPool final : public Executor {
 public:
  explicit ThreadPool(int threads) {
    for (int i = 1; i < threads; ++i) {
      try {
        workers_.emplace_back([this] { work(); });
      } catch (const std::system_error&) {
        break;  // the system has no more threads to give: a smaller pool does the same work
      }
    }
  }

  ~ThreadPool() override {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  int concurrency() const override { return static_cast<int>(workers_.size()) + 1; }

  void parallel_for(std::int64_t tasks, RangeFunction body) const override {
    if (tasks <= 0) return;
    if (tasks == 1 || workers_.empty() || inside_body) {
      body(0, tasks);
      return;
    }
    std::lock_guard one_job_at_a_time(caller_mutex_);
    Job job{body, tasks, grain(tasks)};
    {
      std::lock_guard lock(mutex_);
      job_ = &job;
      ++generation_;
    }
    wake_.notify_all();
    run(job);
    {
      // `job` lives on this stack: no worker may hold it when this returns.
      std::unique_lock lock(mutex_);
      job_ = nullptr;
      done_.wait(lock, [this] { return busy_workers_ == 0; });
    }
    if (job.error) std::rethrow_exception(job.error);
  }

 private:
  struct Job {
    RangeFunction body;
    std::int64_t tasks;
    std::int64_t grain;
    std::atomic<std::int64_t> next{0};
    std::mutex error_mutex{};
    std::exception_ptr error{};
  };

  /// Four ranges a thread even out tasks of unequal length.
  std::int64_t grain(std::int64_t tasks) const {
    return std::max<std::int64_t>(1, tasks / (std::int64_t{4} * concurrency()));
  }

  static void run(Job& job) {
    inside_body = true;
    for (;;) {
      const std::int64_t begin = job.next.fetch_add(job.grain, std::memory_order_relaxed);
      if (begin >= job.tasks) break;
      try {
        job.body(begin, std::min(begin + job.grain, job.tasks));
      } catch (...) {
        std::lock_guard lock(job.error_mutex);
        if (!job.error) job.error = std::current_exception();
      }
    }
    inside_body = false;
  }

  void work() {
    std::uint64_t seen = 0;
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return stopping_ || generation_ != seen; });
      if (stopping_) return;
      seen = generation_;
      Job* job = job_;
      if (job == nullptr) continue;  // woke after the others had finished it
      ++busy_workers_;
      lock.unlock();
      run(*job);
      lock.lock();
      if (--busy_workers_ == 0) done_.notify_all();
    }
  }

  std::vector<std::thread> workers_;
  mutable std::mutex caller_mutex_;
  mutable std::mutex mutex_;  // guards all below
  mutable std::condition_variable wake_;
  mutable std::condition_variable done_;
  mutable Job* job_ = nullptr;
  mutable std::uint64_t generation_ = 0;
  mutable int busy_workers_ = 0;
  bool stopping_ = false;
};

}  // namespace

const Executor& serial_executor() {
  static const SerialExecutor executor;
  return executor;
}

std::unique_ptr<Executor> make_thread_pool(int threads) {
  if (threads < 1) threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  return std::make_unique<ThreadPool>(threads);
}

}  // namespace block_sparse
