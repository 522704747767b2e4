// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "cuda/common/device.h"
#include "cuda/common/element.cuh"
#include "cuda/epilogue/activation.cuh"
#include "cuda/generic/generic.h"

namespace block_sparse::cuda::generic {
namespace {

constexpr int kTile = 32;     // tokens, outputs and K of a tile
constexpr int kThreads = 16;  // a side; each thread owns 2 x 2 outputs

/// A CTA computes 32 tokens x up to 32 outputs of one line of blocks; the
/// tiles of a line and the lines are flattened into grid.x, token tiles walk
/// grid.y (its limit is 65535, so with a stride).
template <class T>
__global__ void __launch_bounds__(kThreads* kThreads) spmm_kernel(SpmmProblem p, int tiles_a_line) {
  using A = accumulator_t<T>;
  __shared__ A xs[kTile][kTile + 1];
  __shared__ A ws[kTile][kTile + 1];
  const int line = static_cast<int>(blockIdx.x) / tiles_a_line;
  const std::int64_t m0 = std::int64_t(blockIdx.x % tiles_a_line) * kTile;
  const std::int64_t row0 = line * p.height + m0;
  const auto* x = static_cast<const T*>(p.x);
  const auto* values = static_cast<const T*>(p.values);
  const int tx = threadIdx.x % kThreads;
  const int ty = threadIdx.x / kThreads;
  const int begin = p.lines.pointers[line];
  const int end = p.lines.pointers[line + 1];
  // Rows of this tile that are not padding of a block or of the matrix.
  const std::int64_t m_count = min(p.height - m0, p.out - row0);

  for (std::int64_t t0 = std::int64_t(blockIdx.y) * kTile; t0 < p.tokens;
       t0 += std::int64_t(gridDim.y) * kTile) {
    A sum[2][2] = {};
    for (int i = begin; i < end; ++i) {
      const std::int64_t k_base = p.lines.others[i] * p.width;
      const std::int64_t k_count = min(p.width, p.in - k_base);
      const T* block = values + p.lines.block_ids[i] * (p.height * p.width);
      for (std::int64_t k0 = 0; k0 < k_count; k0 += kTile) {
        for (int e = threadIdx.x; e < kTile * kTile; e += kThreads * kThreads) {
          const int r = e / kTile;
          const int k = e % kTile;
          const bool in_k = k0 + k < k_count;
          xs[r][k] =
              in_k && t0 + r < p.tokens ? widen(x[(t0 + r) * p.ldx + k_base + k0 + k]) : A(0);
          ws[r][k] = in_k && r < m_count
                         ? widen(block[(m0 + r) * p.stride_m + (k0 + k) * p.stride_k])
                         : A(0);
        }
        __syncthreads();
#pragma unroll 8
        for (int k = 0; k < kTile; ++k) {
#pragma unroll
          for (int a = 0; a < 2; ++a) {
#pragma unroll
            for (int b = 0; b < 2; ++b) {
              sum[a][b] += xs[ty + a * kThreads][k] * ws[tx + b * kThreads][k];
            }
          }
        }
        __syncthreads();
      }
    }
#pragma unroll
    for (int a = 0; a < 2; ++a) {
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        const std::int64_t t = t0 + ty + a * kThreads;
        const int m = tx + b * kThreads;
        if (t >= p.tokens || m >= m_count) continue;
        A v = sum[a][b];
        if (p.bias != nullptr) v += widen(static_cast<const T*>(p.bias)[row0 + m]);
        const std::int64_t at = t * p.ldy + row0 + m;
        if (p.preactivation != nullptr) static_cast<T*>(p.preactivation)[at] = narrow<T>(v);
        static_cast<T*>(p.y)[at] = narrow<T>(activate(v, p.activation));
      }
    }
  }
}

}  // namespace

SpmmProblem problem_of(const ForwardArgs& a) {
  const PatternView& w = a.pattern;
  SpmmProblem p{};
  p.dtype = a.dtype;
  p.allow_tf32 = a.allow_tf32;
  p.lines = row_lines(w, a.plan);
  p.height = w.block_height;
  p.width = w.block_width;
  p.out = w.rows;
  p.in = w.cols;
  p.slots = w.slots;
  p.stride_m = w.block_width;
  p.stride_k = 1;
  p.tokens = a.tokens;
  p.x = a.x;
  p.ldx = a.ldx;
  p.values = a.values;
  p.bias = a.bias;
  p.activation = a.activation;
  p.preactivation = a.preactivation;
  p.y = a.y;
  p.ldy = a.ldy;
  return p;
}

SpmmProblem problem_of(const InputGradientArgs& a) {
  const PatternView& w = a.pattern;
  SpmmProblem p{};
  p.dtype = a.dtype;
  p.allow_tf32 = a.allow_tf32;
  p.lines = column_lines(w, a.plan);
  p.height = w.block_width;
  p.width = w.block_height;
  p.out = w.cols;
  p.in = w.rows;
  p.slots = w.slots;
  p.stride_m = 1;
  p.stride_k = w.block_width;
  p.tokens = a.tokens;
  p.x = a.dy;
  p.ldx = a.lddy;
  p.values = a.values;
  p.y = a.dx;
  p.ldy = a.lddx;
  return p;
}

Status spmm(const SpmmProblem& p, Stream stream) {
  const std::int64_t tiles_a_line = (std::min(p.height, p.out) + kTile - 1) / kTile;
  const std::int64_t columns = p.lines.count * tiles_a_line;
  if (p.tokens == 0 || columns == 0) return {};
  if (columns > 0x7fffffff) return Status::unsupported("The matrix has too many block rows.");
  const dim3 grid(static_cast<unsigned>(columns), static_cast<unsigned>(std::min<std::int64_t>(
                                                      (p.tokens + kTile - 1) / kTile, 65535)));
  with_element(p.dtype, [&](auto element) {
    spmm_kernel<decltype(element)>
        <<<grid, kThreads * kThreads, 0, stream>>>(p, static_cast<int>(tiles_a_line));
  });
  return to_status(cudaGetLastError(), "launching the generic SpMM kernel");
}

}  // namespace block_sparse::cuda::generic
