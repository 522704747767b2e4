// SPDX-License-Identifier: Apache-2.0
#include "cuda/common/device.h"
#include "cuda/sm80/common/layout.h"
#include "cuda/sm80/gradient/gradient.h"
#include "cuda/sm80/gradient/tile.cuh"

namespace block_sparse::cuda::sm80::gradient {
namespace {

constexpr int kSide = 128;  // of a CTA's tile: whole blocks of every size
constexpr int kSixteens = kSide / 16;
// Tiles of a band of 16 x 128 rows are worked on column by column, so that what
// runs together reads few columns of dy and x.
constexpr int kBand = 16;

struct Params {
  const void* dy;
  std::int64_t lddy;
  const void* x;
  std::int64_t ldx;
  int rows, cols;  // features of dy and of x
  int height, width;
  int tokens;
  float* norms;
};

template <class C>
__global__ void __launch_bounds__(C::kThreads, C::kCtas) kernel(const Params p) {
  using T = typename C::Element;
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ float squares[kSixteens][kSixteens];  // of each 16 x 16 elements
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int warp = thread / 32;
  const int tiles_down = (p.rows + kSide - 1) / kSide;
  const int tiles_across = (p.cols + kSide - 1) / kSide;
  const int band = static_cast<int>(blockIdx.x) / (kBand * tiles_across);
  const int rest = static_cast<int>(blockIdx.x) - band * kBand * tiles_across;
  const int high = min(kBand, tiles_down - band * kBand);
  const int row0 = (band * kBand + rest % high) * kSide;
  const int col0 = rest / high * kSide;

  const int dy_col = row0 + thread % (kSide / C::kUnit) * C::kUnit;
  const int x_col = col0 + thread % (kSide / C::kUnit) * C::kUnit;
  const bool has_dy = dy_col < p.rows;
  const bool has_x = x_col < p.cols;
  typename C::Product product;
  multiply_tokens<C>(product, ptx::shared_address(shared),
                     {static_cast<const T*>(p.dy) + (has_dy ? dy_col : 0), p.lddy, has_dy},
                     {static_cast<const T*>(p.x) + (has_x ? x_col : 0), p.ldx, has_x}, 0, p.tokens);

  float* slab = reinterpret_cast<float*>(shared) + warp * C::kSlabFloats;
#pragma unroll
  for (int s = 0; s < C::kWarpRows / 16; ++s) {
    product.template write_slab<typename C::DyTile, typename C::XTile>(s, slab, C::kSlabStride);
    __syncwarp();
    for (int c = 0; c < C::kWarpCols / 16; ++c) {
      const float* eight = slab + lane / 2 * C::kSlabStride + c * 16 + lane % 2 * 8;
      float sum = 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) sum += eight[i] * eight[i];
#pragma unroll
      for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
      if (lane == 0) {
        squares[warp / C::kWarpsAcross * (C::kWarpRows / 16) + s]
               [warp % C::kWarpsAcross * (C::kWarpCols / 16) + c] = sum;
      }
    }
    __syncwarp();
  }
  __syncthreads();
  const int down = kSide / p.height;
  const int across = kSide / p.width;
  for (int b = thread; b < down * across; b += C::kThreads) {
    const int r = b / across;
    const int c = b % across;
    const int row = row0 / p.height + r;
    const int col = col0 / p.width + c;
    if (row * p.height >= p.rows || col * p.width >= p.cols) continue;
    float sum = 0;
    for (int i = r * p.height / 16; i < (r + 1) * p.height / 16; ++i) {
      for (int j = c * p.width / 16; j < (c + 1) * p.width / 16; ++j) sum += squares[i][j];
    }
    p.norms[std::int64_t(row) * (p.cols / p.width) + col] = sqrtf(sum);
  }
}

template <class C>
Status launch(const BlockNormsArgs& a, Stream stream) {
  const PatternView& w = a.pattern;
  const std::int64_t tiles = ((w.rows + kSide - 1) / kSide) * ((w.cols + kSide - 1) / kSide);
  if (tiles == 0) return {};
  if (Status s = allow_shared_memory(kernel<C>, C::kBytes); !s.ok()) return s;
  kernel<C><<<static_cast<unsigned>(tiles), C::kThreads, C::kBytes, stream>>>(
      {a.dy, a.lddy, a.x, a.ldx, static_cast<int>(w.rows), static_cast<int>(w.cols),
       static_cast<int>(w.block_height), static_cast<int>(w.block_width),
       static_cast<int>(a.tokens), static_cast<float*>(a.norms)});
  return to_status(cudaGetLastError(), "launching the portable block norms kernel");
}

template <class Math>
using Tiles = Config<Math, kSide, kSide, 64, 64, 4, 2>;

}  // namespace

const char* refusal(const BlockNormsArgs& a) {
  const PatternView& w = a.pattern;
  if (a.dtype == DataType::f64) return "float64";
  if (!is_side(w.block_height) || !is_side(w.block_width)) return kSideRefusal;
  if (w.rows % w.block_height != 0 || w.cols % w.block_width != 0) {
    return "features are not whole blocks";
  }
  if (a.tokens > 0x7fff0000 || w.rows > 0x7fff0000 || w.cols > 0x7fff0000 ||
      (w.rows / kSide + 1) * (w.cols / kSide + 1) > 0x7fff0000) {
    return "too many tokens or features";
  }
  const auto unit = static_cast<std::int64_t>(16 / size_of(a.dtype));
  if (!is_aligned(a.dy) || !is_aligned(a.x) || a.lddy % unit != 0 || a.ldx % unit != 0) {
    return "rows are not 16-byte aligned";
  }
  return nullptr;
}

Status run(const BlockNormsArgs& a, Stream stream) {
  switch (a.dtype) {
    case DataType::bf16:
      return launch<Tiles<Mma16<bf16>>>(a, stream);
    case DataType::f16:
      return launch<Tiles<Mma16<f16>>>(a, stream);
    default:
      return a.allow_tf32 ? launch<Tiles<Tf32>>(a, stream) : launch<Tiles<Ffma>>(a, stream);
  }
}

}  // namespace block_sparse::cuda::sm80::gradient
