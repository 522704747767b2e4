// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/common/element.cuh"
#include "cuda/ptx/matrix.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/sm80/common/tile.cuh"

/// Products of a warp on tensor cores. A step is 32 bytes of k: 16 elements of
/// 16 bits or 8 of TF32, for which the fragments lie alike.
namespace block_sparse::cuda::sm80 {

template <class Element_>
struct Mma16 {
  using Element = Element_;
  static constexpr Swizzle kFeatureSwizzle = Swizzle::rows;

  /// Features row to row + 15 of operand a.
  template <class Tile>
  __device__ __forceinline__ static void load_a(const Tile& t, int row, int step,
                                                std::uint32_t (&a)[4]) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if constexpr (Tile::kKContiguous) {
      ptx::load_matrix_x4(a, t.from(row).unit(lane % 16, 2 * step + lane / 16));
    } else {
      ptx::load_matrix_x4_transposed(
          a, t.from(step * 16).unit(lane % 8 + lane / 16 * 8, row / 8 + lane / 8 % 2));
    }
  }
  /// The same of operand b: two column tiles of 8, two words each.
  template <class Tile>
  __device__ __forceinline__ static void load_b(const Tile& t, int row, int step,
                                                std::uint32_t (&b)[4]) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if constexpr (Tile::kKContiguous) {
      ptx::load_matrix_x4(b, t.from(row).unit(lane % 8 + lane / 16 * 8, 2 * step + lane / 8 % 2));
    } else {
      ptx::load_matrix_x4_transposed(b, t.from(step * 16).unit(lane % 16, row / 8 + lane / 16));
    }
  }
  __device__ __forceinline__ static void multiply(float (&d)[4], const std::uint32_t (&a)[4],
                                                  std::uint32_t b0, std::uint32_t b1) {
    ptx::mma_16x8x16<Element>(d, a, b0, b1);
  }
};

struct Tf32 {
  using Element = float;
  static constexpr Swizzle kFeatureSwizzle = Swizzle::pairs;

  template <class Tile>
  __device__ __forceinline__ static void load_a(const Tile& t, int row, int step,
                                                std::uint32_t (&a)[4]) {
    if constexpr (Tile::kKContiguous) {
      Mma16<bf16>::load_a(t, row, step, a);
    } else {
      load_words(t, row, step, a[0], a[1], a[2], a[3]);
    }
    round(a);
  }
  template <class Tile>
  __device__ __forceinline__ static void load_b(const Tile& t, int row, int step,
                                                std::uint32_t (&b)[4]) {
    if constexpr (Tile::kKContiguous) {
      Mma16<bf16>::load_b(t, row, step, b);
    } else {
      load_words(t, row, step, b[0], b[2], b[1], b[3]);
    }
    round(b);
  }
  __device__ __forceinline__ static void multiply(float (&d)[4], const std::uint32_t (&a)[4],
                                                  std::uint32_t b0, std::uint32_t b1) {
    ptx::mma_16x8x8_tf32(d, a, b0, b1);
  }

 private:
  /// The lane's words of two tiles of 8 features and of k and k + 4. There is no
  /// transposed ldmatrix for words.
  template <class Tile>
  __device__ __forceinline__ static void load_words(const Tile& t, int row, int step,
                                                    std::uint32_t& k0, std::uint32_t& k0_next,
                                                    std::uint32_t& k4, std::uint32_t& k4_next) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int unit = row / 4 + lane / 16;
    const std::uint32_t word = lane / 4 % 4 * 4;
    const Tile at = t.from(step * 8);
    k0 = ptx::load_shared(at.unit(lane % 4, unit) + word);
    k0_next = ptx::load_shared(at.unit(lane % 4, unit + 2) + word);
    k4 = ptx::load_shared(at.unit(lane % 4 + 4, unit) + word);
    k4_next = ptx::load_shared(at.unit(lane % 4 + 4, unit + 2) + word);
  }
  __device__ __forceinline__ static void round(std::uint32_t (&v)[4]) {
#pragma unroll
    for (std::uint32_t& word : v) word = ptx::round_to_tf32(word);
  }
};

/// Sums of `Rows` x `Cols` in a warp.
template <class Math, int Rows, int Cols>
struct WarpProduct {
  static constexpr int kRows = Rows;
  static constexpr int kCols = Cols;
  static constexpr int kUnroll = 4;  // steps
  float d[Rows / 16][Cols / 8][4] = {};

  /// Adds a step's product of rows from `row` of a and columns
  /// [First, First + Count) of the warp, which are those from `col` on of b.
  template <int First = 0, int Count = Cols, class A, class B>
  __device__ __forceinline__ void multiply(const A& a_tile, int row, const B& b_tile, int col,
                                           int step) {
    std::uint32_t a[Rows / 16][4];
    load_a(a_tile, row, step, a);
    multiply_loaded<First, Count>(a, b_tile, col, step);
  }
  template <class A>
  __device__ __forceinline__ static void load_a(const A& tile, int row, int step,
                                                std::uint32_t (&a)[Rows / 16][4]) {
#pragma unroll
    for (int m = 0; m < Rows / 16; ++m) Math::load_a(tile, row + m * 16, step, a[m]);
  }
  template <int First, int Count, class B>
  __device__ __forceinline__ void multiply_loaded(const std::uint32_t (&a)[Rows / 16][4],
                                                  const B& tile, int col, int step) {
#pragma unroll
    for (int n = 0; n < Count / 8; n += 2) {
      std::uint32_t b[4];
      Math::load_b(tile, col + n * 8, step, b);
#pragma unroll
      for (int m = 0; m < Rows / 16; ++m) {
        Math::multiply(d[m][First / 8 + n], a[m], b[0], b[1]);
        Math::multiply(d[m][First / 8 + n + 1], a[m], b[2], b[3]);
      }
    }
  }

  /// Writes rows [16 slab, 16 slab + 16) to shared memory. A, B: the operands' tiles.
  template <class A, class B>
  __device__ __forceinline__ void write_slab(int slab, float* to, int stride) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int m = 0; m < Rows / 16; ++m) {
      if (m != slab) continue;
#pragma unroll
      for (int n = 0; n < Cols / 8; ++n) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          *reinterpret_cast<float2*>(to + (lane / 4 + h * 8) * stride + n * 8 + lane % 4 * 2) =
              make_float2(d[m][n][2 * h], d[m][n][2 * h + 1]);
        }
      }
    }
  }
};

}  // namespace block_sparse::cuda::sm80
