// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "cuda/common/device.h"
#include "cuda/common/element.cuh"
#include "cuda/generic/generic.h"

namespace block_sparse::cuda::generic {
namespace {

constexpr int kTile = 32;
constexpr int kThreads = 16;

/// The 32 x 32 tile at (row0, col0) of dyᵀ x, 2 x 2 elements a thread; rows
/// and columns at or beyond row_end and col_end give 0.
template <class T>
struct TileProduct {
  using A = accumulator_t<T>;
  const T* dy;
  std::int64_t lddy;
  const T* x;
  std::int64_t ldx;
  std::int64_t tokens;

  __device__ void operator()(std::int64_t row0, std::int64_t row_end, std::int64_t col0,
                             std::int64_t col_end, A (&sum)[2][2]) const {
    __shared__ A ds[kTile][kTile + 1];
    __shared__ A xs[kTile][kTile + 1];
    const int tx = threadIdx.x % kThreads;
    const int ty = threadIdx.x / kThreads;
    for (std::int64_t t0 = 0; t0 < tokens; t0 += kTile) {
      for (int e = threadIdx.x; e < kTile * kTile; e += kThreads * kThreads) {
        const int t = e / kTile;
        const int c = e % kTile;
        const bool in_t = t0 + t < tokens;
        ds[t][c] = in_t && row0 + c < row_end ? widen(dy[(t0 + t) * lddy + row0 + c]) : A(0);
        xs[t][c] = in_t && col0 + c < col_end ? widen(x[(t0 + t) * ldx + col0 + c]) : A(0);
      }
      __syncthreads();
#pragma unroll 8
      for (int t = 0; t < kTile; ++t) {
#pragma unroll
        for (int a = 0; a < 2; ++a) {
#pragma unroll
          for (int b = 0; b < 2; ++b) {
            sum[a][b] += ds[t][ty + a * kThreads] * xs[t][tx + b * kThreads];
          }
        }
      }
      __syncthreads();
    }
  }
};

/// The line that holds block i: the last one whose pointer is at or below i.
__device__ int line_of(const std::int32_t* pointers, int lines, int i) {
  int low = 0;
  int high = lines;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (pointers[middle] <= i ? low : high) = middle;
  }
  return low;
}

/// A CTA per slot and tile of its block.
template <class T, class Out>
__global__ void __launch_bounds__(kThreads* kThreads)
    weight_gradient_kernel(WeightGradientArgs p, int tiles_across, int tiles_down) {
  using A = accumulator_t<T>;
  const PatternView& w = p.pattern;
  const int tiles = tiles_across * tiles_down;
  const int i = static_cast<int>(blockIdx.x) / tiles;
  const int tile = static_cast<int>(blockIdx.x) % tiles;
  const std::int64_t m0 = std::int64_t(tile / tiles_across) * kTile;
  const std::int64_t n0 = std::int64_t(tile % tiles_across) * kTile;
  const int lines = static_cast<int>((w.rows + w.block_height - 1) / w.block_height);
  const bool stored = i < w.crow_indices[lines];
  A sum[2][2] = {};
  if (stored) {
    const std::int64_t row = line_of(w.crow_indices, lines, i) * w.block_height;
    const std::int64_t col = w.col_indices[i] * w.block_width;
    const TileProduct<T> product{static_cast<const T*>(p.dy), p.lddy, static_cast<const T*>(p.x),
                                 p.ldx, p.tokens};
    product(row + m0, min(row + w.block_height, w.rows), col + n0, min(col + w.block_width, w.cols),
            sum);
  }
  const int tx = threadIdx.x % kThreads;
  const int ty = threadIdx.x / kThreads;
  auto* block = static_cast<Out*>(p.dvalues) + w.block_ids[i] * (w.block_height * w.block_width);
#pragma unroll
  for (int a = 0; a < 2; ++a) {
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      const std::int64_t m = m0 + ty + a * kThreads;
      const std::int64_t n = n0 + tx + b * kThreads;
      if (m >= w.block_height || n >= w.block_width) continue;
      Out& out = block[m * w.block_width + n];
      // Accumulating leaves spare slots and padding as they are: their sum is 0.
      out = narrow<Out>(p.accumulate ? accumulator_t<Out>(widen(out)) + sum[a][b] : sum[a][b]);
    }
  }
}

/// A CTA per block, stored or not; its tiles one after the other, so that the
/// sum has one order.
template <class T>
__global__ void __launch_bounds__(kThreads* kThreads)
    block_norms_kernel(BlockNormsArgs p, std::int64_t block_cols, std::int64_t blocks) {
  using A = accumulator_t<T>;
  __shared__ A partial[kThreads * kThreads];
  const PatternView& w = p.pattern;
  const TileProduct<T> product{static_cast<const T*>(p.dy), p.lddy, static_cast<const T*>(p.x),
                               p.ldx, p.tokens};
  for (std::int64_t i = blockIdx.x; i < blocks; i += gridDim.x) {
    const std::int64_t row = i / block_cols * w.block_height;
    const std::int64_t col = i % block_cols * w.block_width;
    const std::int64_t row_end = min(row + w.block_height, w.rows);
    const std::int64_t col_end = min(col + w.block_width, w.cols);
    A squares = 0;
    for (std::int64_t r = row; r < row_end; r += kTile) {
      for (std::int64_t c = col; c < col_end; c += kTile) {
        A sum[2][2] = {};
        product(r, row_end, c, col_end, sum);
        squares += sum[0][0] * sum[0][0] + sum[0][1] * sum[0][1] + sum[1][0] * sum[1][0] +
                   sum[1][1] * sum[1][1];
      }
    }
    partial[threadIdx.x] = squares;
    __syncthreads();
    for (int half = kThreads * kThreads / 2; half > 0; half /= 2) {
      if (static_cast<int>(threadIdx.x) < half) partial[threadIdx.x] += partial[threadIdx.x + half];
      __syncthreads();
    }
    if (threadIdx.x == 0) static_cast<A*>(p.norms)[i] = sqrt(partial[0]);
    __syncthreads();
  }
}

}  // namespace

Status weight_gradient(const WeightGradientArgs& a, Stream stream) {
  const PatternView& w = a.pattern;
  const std::int64_t across = (w.block_width + kTile - 1) / kTile;
  const std::int64_t down = (w.block_height + kTile - 1) / kTile;
  const std::int64_t ctas = w.slots * across * down;
  if (ctas == 0) return {};
  if (ctas > 0x7fffffff) return Status::unsupported("The matrix has too many blocks.");
  with_element(a.dtype, [&](auto element) {
    using T = decltype(element);
    const auto grid = static_cast<unsigned>(ctas);
    if (a.out_dtype == a.dtype) {
      weight_gradient_kernel<T, T><<<grid, kThreads * kThreads, 0, stream>>>(
          a, static_cast<int>(across), static_cast<int>(down));
    } else if constexpr (sizeof(T) == 2) {
      weight_gradient_kernel<T, float><<<grid, kThreads * kThreads, 0, stream>>>(
          a, static_cast<int>(across), static_cast<int>(down));
    }
  });
  return to_status(cudaGetLastError(), "launching the generic weight gradient kernel");
}

Status block_norms(const BlockNormsArgs& a, Stream stream) {
  const std::int64_t block_cols = a.pattern.n_block_cols();
  const std::int64_t blocks = a.pattern.n_block_rows() * block_cols;
  if (blocks == 0) return {};
  const auto grid = static_cast<unsigned>(std::min<std::int64_t>(blocks, 1 << 20));
  with_element(a.dtype, [&](auto element) {
    block_norms_kernel<decltype(element)>
        <<<grid, kThreads * kThreads, 0, stream>>>(a, block_cols, blocks);
  });
  return to_status(cudaGetLastError(), "launching the generic block norms kernel");
}

}  // namespace block_sparse::cuda::generic
