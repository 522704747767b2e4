// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

/// What the kernels of this folder ask of blocks and pointers.
namespace block_sparse::cuda::sm80 {

constexpr bool is_side(std::int64_t side) {
  return side == 16 || side == 32 || side == 64 || side == 128;
}
constexpr const char* kSideRefusal = "a side of the blocks is not 16, 32, 64 or 128";

inline bool is_aligned(const void* data) {
  return reinterpret_cast<std::uintptr_t>(data) % 16 == 0;
}

}  // namespace block_sparse::cuda::sm80
