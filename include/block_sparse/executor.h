// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

namespace block_sparse {

/// A non-owning reference to a callable `void(int64_t begin, int64_t end)`.
class RangeFunction {
 public:
  template <class F, class = std::enable_if_t<!std::is_same_v<std::decay_t<F>, RangeFunction>>>
  RangeFunction(F&& f)  // NOLINT: implicit, so that a lambda can be passed in place
      : object_(const_cast<void*>(static_cast<const void*>(std::addressof(f)))),
        call_([](void* object, std::int64_t begin, std::int64_t end) {
          (*static_cast<std::remove_reference_t<F>*>(object))(begin, end);
        }) {}

  void operator()(std::int64_t begin, std::int64_t end) const { call_(object_, begin, end); }

 private:
  void* object_;
  void (*call_)(void*, std::int64_t, std::int64_t);
};

/// Where parallel work runs. The library owns no threads: torch passes its own
/// pool, a C++ program passes whatever it has.
class Executor {
 public:
  virtual ~Executor() = default;
  /// How many ranges can make progress at once; at least 1.
  virtual int concurrency() const = 0;
  /// Calls `body` on disjoint ranges that together cover [0, tasks), each task
  /// exactly once, and returns when all are done. Ranges may run concurrently.
  virtual void parallel_for(std::int64_t tasks, RangeFunction body) const = 0;
};

/// Runs everything on the calling thread.
const Executor& serial_executor();

/// A fixed pool of `threads` threads (the caller's included) for programs that
/// have none of their own. `threads` below 1 means one per hardware thread.
std::unique_ptr<Executor> make_thread_pool(int threads);

}  // namespace block_sparse
