// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

namespace block_sparse::cpu {

/// What a thread's scratch is used for: two of different use never overlap.
enum class ScratchUse { kernel, staging, accumulators, weights };

/// At least `bytes` bytes, aligned to 64, that belong to the calling thread until
/// its next call with the same use; null if there is no memory. A thread keeps
/// what it got for later calls.
void* thread_scratch(ScratchUse use, std::size_t bytes);

}  // namespace block_sparse::cpu
