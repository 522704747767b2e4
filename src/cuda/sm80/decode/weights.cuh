// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "cuda/ptx/mma.cuh"

/// How W gets from memory into the fragments of mma.m16n8k16, or of m16n8k8 of TF32 (which
/// float stands for), without shared memory.
namespace block_sparse::cuda::sm80::decode {

// A step are 64 bytes along K. Lane l takes the 16 from 16 (l % 4) on of a row. The sum over
// k does not care which k of an mma an element stands for as long as W and x agree, so both
// go from memory into fragments as they lie.
template <class Element>
constexpr int kLaneK = 16 / static_cast<int>(sizeof(Element));
template <class Element>
constexpr int kStep = 4 * kLaneK<Element>;

/// A word of an operand as mma wants it.
template <class Element>
__device__ __forceinline__ std::uint32_t as_operand(std::uint32_t word) {
  return std::is_same_v<Element, float> ? ptx::round_to_tf32(word) : word;
}

/// d += a b of two or one k a word.
template <class Element>
__device__ __forceinline__ void multiply_words(float (&d)[4], const std::uint32_t (&a)[4],
                                               std::uint32_t b0, std::uint32_t b1) {
  b0 = as_operand<Element>(b0);
  b1 = as_operand<Element>(b1);
  if constexpr (std::is_same_v<Element, float>) {
    ptx::mma_16x8x8_tf32(d, a, b0, b1);
  } else {
    ptx::mma_16x8x16<Element>(d, a, b0, b1);
  }
}

/// Loads `Words` consecutive words that are read once, past L1.
template <int Words>
__device__ __forceinline__ void load_once(std::uint32_t* to, const void* from) {
  if constexpr (Words == 4) {
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "l"(from));
  } else if constexpr (Words == 2) {
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];"
                 : "=r"(to[0]), "=r"(to[1])
                 : "l"(from));
  } else {
    asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(to[0]) : "l"(from));
  }
}

/// A lane's part of `TilesM` x 16 outputs of one step. KContiguous: k runs along the
/// rows of a stored block (forward), else outputs do (input gradient).
template <class Element, int TilesM, bool KContiguous>
struct Weights {
  std::uint32_t w[8 * TilesM];
  // Words of the outputs of one k, where they are contiguous: two outputs a tile.
  static constexpr int kRowWords = 2 * TilesM * static_cast<int>(sizeof(Element)) / 4;

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (std::uint32_t& word : w) word = 0;
  }

  /// The lane's k of `block` begin at `in_block`, the outputs at `m0`.
  __device__ __forceinline__ void load(const Element* block, int in_block, int m0, int height,
                                       int width) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if constexpr (KContiguous) {
#pragma unroll
      for (int r = 0; r < 2 * TilesM; ++r) {
        load_once<4>(w + 4 * r, block + (m0 + r * 8 + lane / 4) * width + in_block);
      }
    } else {
#pragma unroll
      for (int j = 0; j < kLaneK<Element>; ++j) {
        load_once<kRowWords>(w + kRowWords * j,
                             block + (in_block + j) * height + m0 + lane / 4 * 2 * TilesM);
      }
    }
  }

  /// The fragment of tile m for words 2 half and 2 half + 1 of the lane's four of a row.
  __device__ __forceinline__ void fragment(int m, int half, std::uint32_t (&a)[4]) const {
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      const int word = 2 * half + pair;
      if constexpr (KContiguous) {
        a[2 * pair] = w[8 * m + word];
        a[2 * pair + 1] = w[8 * m + 4 + word];
      } else if constexpr (kLaneK<Element> == 4) {
        a[2 * pair] = w[kRowWords * word + 2 * m];
        a[2 * pair + 1] = w[kRowWords * word + 2 * m + 1];
      } else {
        const std::uint32_t even = w[kRowWords * (2 * word) + m];
        const std::uint32_t odd = w[kRowWords * (2 * word + 1) + m];
        a[2 * pair] = __byte_perm(even, odd, 0x5410);
        a[2 * pair + 1] = __byte_perm(even, odd, 0x7632);
      }
    }
#pragma unroll
    for (std::uint32_t& word : a) word = as_operand<Element>(word);
  }

  /// The output, of the 16 TilesM, that accumulator row lane / 4 + 8 `high` of tile m
  /// stands for.
  static __device__ __forceinline__ int row_of(int lane, int m, int high) {
    return KContiguous ? m * 16 + high * 8 + lane / 4 : (lane / 4 * TilesM + m) * 2 + high;
  }
};

}  // namespace block_sparse::cuda::sm80::decode
