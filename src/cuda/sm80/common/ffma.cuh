// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/sm80/common/mma.cuh"

namespace block_sparse::cuda::sm80 {

/// True f32 on the ordinary arithmetic units.
struct Ffma {
  using Element = float;
  // Features are read four at a time, which no permutation improves.
  static constexpr Swizzle kFeatureSwizzle = Swizzle::none;
};

/// Sums of `Rows` x `Cols` in a warp, 8 or 16 x 8 a thread. Reads of shared memory
/// bound it, so the more sums the better: 8 x 8 read as much as they can at best.
template <int Rows, int Cols>
struct WarpProduct<Ffma, Rows, Cols> {
  static constexpr int kRows = Rows;
  static constexpr int kCols = Cols;
  static constexpr int kUnroll = 1;  // more would only cost registers
  static constexpr int kLanesAcross = Cols / 8;
  static constexpr int kLanesDown = 32 / kLanesAcross;
  static constexpr int kDown = Rows / kLanesDown;  // rows of a thread
  static_assert(kDown == 8 || kDown == 16);
  float d[kDown][8] = {};

  template <class A, class B>
  __device__ __forceinline__ void multiply(const A& a_tile, int row, const B& b_tile, int col,
                                           int step) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int down = lane / kLanesAcross;
    const int across = lane % kLanesAcross;
#pragma unroll 1
    for (int unit = 2 * step; unit < 2 * step + 2; ++unit) {
      if constexpr (A::kKContiguous) {
        float b[8][4];
        load_four_k<kLanesAcross>(b_tile, col, across, unit, b);
#pragma unroll
        for (int j = 0; j < kDown; ++j) {
          float a[4];
          ptx::load_shared_x4(a, address_of<kLanesDown>(a_tile, row, down, j, unit));
#pragma unroll
          for (int k = 0; k < 4; ++k) {
#pragma unroll
            for (int i = 0; i < 8; ++i) d[j][i] += a[k] * b[i][k];
          }
        }
      } else {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          float a[kDown], b[8];
          load_features<kLanesDown>(a_tile, row, down, unit * 4 + k, a);
          load_features<kLanesAcross>(b_tile, col, across, unit * 4 + k, b);
#pragma unroll
          for (int j = 0; j < kDown; ++j) {
#pragma unroll
            for (int i = 0; i < 8; ++i) d[j][i] += a[j] * b[i];
          }
        }
      }
    }
  }

  /// A, B: the operands' tiles, which say whose sums a lane holds.
  template <class A, class B>
  __device__ __forceinline__ void write_slab(int slab, float* to, int stride) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int down = lane / kLanesAcross;
    const int across = lane % kLanesAcross;
#pragma unroll
    for (int j = 0; j < kDown; ++j) {
      const int row = feature_of<A, kLanesDown>(down, j);
      if (row / 16 != slab) continue;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        to[row % 16 * stride + feature_of<B, kLanesAcross>(across, i)] = d[j][i];
      }
    }
  }

 private:
  /// Which of the warp's features is a lane's i-th. Where k is contiguous, lanes
  /// take neighbouring rows of shared memory, which lie in different banks; where
  /// features are, runs of four.
  template <class Tile, int Lanes>
  __device__ __forceinline__ static int feature_of(int lane, int i) {
    return Tile::kKContiguous ? lane + i * Lanes : lane * 4 + i / 4 * (4 * Lanes) + i % 4;
  }
  /// The unit of a lane's i-th feature from `first`, a multiple of 8, on where k is
  /// contiguous. Rows 8 apart are permuted alike, so few of the addresses of a step
  /// differ by more than a constant.
  template <int Lanes, class Tile>
  __device__ __forceinline__ static std::uint32_t address_of(const Tile& t, int first, int lane,
                                                             int i, int unit) {
    constexpr int kAlike = Lanes < 8 ? 8 / Lanes : 1;
    const int low = lane + i % kAlike * Lanes;
    const int high = i / kAlike * (Lanes * kAlike);
    return t.from(first + high).unit(low, unit);
  }
  template <int Lanes, class Tile, int Count>
  __device__ __forceinline__ static void load_features(const Tile& t, int first, int lane, int k,
                                                       float (&v)[Count]) {
#pragma unroll
    for (int i = 0; i < Count / 4; ++i) {
      ptx::load_shared_x4(v + 4 * i, t.unit(k, first / 4 + lane + i * Lanes));
    }
  }
  template <int Lanes, class Tile>
  __device__ __forceinline__ static void load_four_k(const Tile& t, int first, int lane, int unit,
                                                     float (&v)[8][4]) {
    if constexpr (Tile::kKContiguous) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        ptx::load_shared_x4(v[i], address_of<Lanes>(t, first, lane, i, unit));
      }
    } else {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        float features[8];
        load_features<Lanes>(t, first, lane, unit * 4 + k, features);
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i][k] = features[i];
      }
    }
  }
};

}  // namespace block_sparse::cuda::sm80
