// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "cuda/common/element.cuh"

namespace block_sparse::cuda {

/// Where a weight gradient kernel puts sums: into the gradient, or, when the
/// tokens are split, into partial sums that are added up afterwards.
struct SddmmOutput {
  void* dvalues;
  float* partial;  // (splits, slots, block elements), or null
  std::int64_t slots;
  int block_elements;
  bool as_float;  // dvalues is f32, else of the type of dy and x
  bool accumulate;

  /// Stores elements `at` and `at` + 1 of a block; `at` is even.
  template <class T>
  __device__ __forceinline__ void store(int split, int slot, int at, float a, float b) const {
    if (partial != nullptr) {
      float* to = partial + (split * slots + slot) * block_elements + at;
      *reinterpret_cast<float2*>(to) = make_float2(a, b);
      return;
    }
    store<T>(slot, at, a, b);
  }

  /// The same straight into the gradient.
  template <class T>
  __device__ __forceinline__ void store(int slot, int at, float a, float b) const {
    const std::int64_t offset = std::int64_t(slot) * block_elements + at;
    if (std::is_same_v<T, float> || as_float) {
      auto* to = reinterpret_cast<float2*>(static_cast<float*>(dvalues) + offset);
      if (accumulate) {
        const float2 old = *to;
        a += old.x;
        b += old.y;
      }
      *to = make_float2(a, b);
    } else {
      T* to = static_cast<T*>(dvalues) + offset;
      if (accumulate) {
        a += widen(to[0]);
        b += widen(to[1]);
      }
      *reinterpret_cast<unsigned*>(to) = narrow_pair<T>(a, b);
    }
  }

  /// Clears the slots from ids[stored] on, by all threads of all CTAs, where no kernel comes
  /// afterwards that does and nothing is added to what was there.
  template <class T>
  __device__ __forceinline__ void clear_spare(const std::int32_t* ids, int stored) const {
    if (partial != nullptr || accumulate) return;
    const int words = block_elements * (as_float ? 4 : static_cast<int>(sizeof(T))) / 4;
    for (std::int64_t i = stored + std::int64_t(blockIdx.x); i < slots; i += gridDim.x) {
      auto* block = static_cast<unsigned*>(dvalues) + std::int64_t(ids[i]) * words;
      for (int w = static_cast<int>(threadIdx.x); w < words; w += static_cast<int>(blockDim.x)) {
        block[w] = 0;
      }
    }
  }
};

}  // namespace block_sparse::cuda
