// SPDX-License-Identifier: Apache-2.0
#include "cpu/scratch.h"

#include <new>

namespace block_sparse::cpu {
namespace {

constexpr std::align_val_t alignment{64};

struct Buffer {
  void* data = nullptr;
  std::size_t bytes = 0;

  void release() {
    ::operator delete(data, alignment);
    data = nullptr;
    bytes = 0;
  }
  ~Buffer() { release(); }
};

}  // namespace

void* thread_scratch(ScratchUse use, std::size_t bytes) {
  thread_local Buffer buffers[4];
  Buffer& buffer = buffers[static_cast<int>(use)];
  if (buffer.bytes < bytes) {
    buffer.release();
    buffer.data = ::operator new(bytes, alignment, std::nothrow);
    if (buffer.data != nullptr) buffer.bytes = bytes;
  }
  return buffer.data;
}

}  // namespace block_sparse::cpu
