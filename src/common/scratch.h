// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

#include "block_sparse/status.h"
#include "common/checked.h"

namespace block_sparse {

/// Uninitialised memory aligned to a cache line; null when there is none.
template <class T>
class Scratch {
 public:
  Scratch() = default;
  explicit Scratch(std::int64_t count) {
    constexpr auto size = static_cast<std::int64_t>(sizeof(T));
    if (const auto bytes = checked_product({count, size})) {
      data_.reset(static_cast<T*>(::operator new(static_cast<std::size_t>(*bytes),
                                                 std::align_val_t{alignment}, std::nothrow)));
    }
  }
  T* get() const { return data_.get(); }
  explicit operator bool() const { return data_ != nullptr; }

 private:
  static constexpr std::size_t alignment = 64;
  struct Free {
    void operator()(T* data) const { ::operator delete(data, std::align_val_t{alignment}); }
  };
  std::unique_ptr<T, Free> data_;
};

inline Status no_scratch() {
  return Status::out_of_memory("not enough memory for the scratch of a block-sparse product");
}

}  // namespace block_sparse
