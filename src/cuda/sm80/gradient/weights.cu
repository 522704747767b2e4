// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <bit>
#include <limits>

#include "cuda/common/device.h"
#include "cuda/sddmm/finish.h"
#include "cuda/sddmm/output.cuh"
#include "cuda/sddmm/work.cuh"
#include "cuda/sm80/common/layout.h"
#include "cuda/sm80/gradient/gradient.h"
#include "cuda/sm80/gradient/tile.cuh"

namespace block_sparse::cuda::sm80::gradient {
namespace {

/// The tile for blocks `Height` high: one block row x the columns of several of its
/// blocks. Low block rows take more columns, so that dy is read less often.
template <class Math, int Height>
struct ConfigOf {
  using Type = Config<Math, Height, 256, Height, 64, 4, 3>;
};
template <>
struct ConfigOf<Tf32, 64> {
  using Type = Config<Tf32, 64, 128, 32, 64, 4, 3>;
};
template <>
struct ConfigOf<Tf32, 128> {
  using Type = Config<Tf32, 128, 128, 64, 64, 4, 2>;
};
template <>
struct ConfigOf<Ffma, 16> {
  using Type = Config<Ffma, 16, 256, 16, 128, 3, 4>;
};
template <>
struct ConfigOf<Ffma, 32> {
  using Type = Config<Ffma, 32, 256, 32, 128, 3, 4>;
};
template <>
struct ConfigOf<Ffma, 64> {
  using Type = Config<Ffma, 64, 128, 64, 64, 4, 4>;
};
template <>
struct ConfigOf<Ffma, 128> {
  using Type = Config<Ffma, 128, 128, 64, 64, 4, 2>;
};

struct Params {
  SddmmPieces pieces;
  const std::int32_t* cols;
  const std::int32_t* ids;
  int log_width;
  const float* dy;
  std::int64_t lddy;
  const float* x;
  std::int64_t ldx;
  SddmmOutput output;
};

template <class C>
__global__ void __launch_bounds__(C::kThreads, C::kCtas) kernel(const Params p) {
  extern __shared__ __align__(128) unsigned char shared[];
  const std::uint32_t base = ptx::shared_address(shared);
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int warp = thread / 32;
  const int width = 1 << p.log_width;
  const int row0 = warp / C::kWarpsAcross * C::kWarpRows;
  const int col0 = warp % C::kWarpsAcross * C::kWarpCols;
  float* slab = reinterpret_cast<float*>(shared) + warp * C::kSlabFloats;

  SddmmWork work;
  for (int item = static_cast<int>(blockIdx.x);
       find_work(p.pieces, item, C::kCols >> p.log_width, &work);
       item += static_cast<int>(gridDim.x)) {
    const int dy_col = thread % (C::kRows / C::kUnit) * C::kUnit;
    const int x_col = thread % (C::kCols / C::kUnit) * C::kUnit;
    const int block = x_col >> p.log_width;
    const bool stored = block < work.count;
    const std::int64_t column =
        stored ? std::int64_t(p.cols[work.first + block]) * width + (x_col & (width - 1)) : 0;
    const TokenRange tokens = tokens_of(p.pieces, work.split);
    typename C::Product product;
    multiply_tokens<C>(product, base,
                       {p.dy + std::int64_t(work.line) * C::kRows + dy_col, p.lddy, true},
                       {p.x + column, p.ldx, stored}, tokens.begin, tokens.end);
#pragma unroll
    for (int s = 0; s < C::kWarpRows / 16; ++s) {
      product.template write_slab<typename C::DyTile, typename C::XTile>(s, slab, C::kSlabStride);
      __syncwarp();
      for (int e = lane * 2; e < 16 * C::kWarpCols; e += 64) {
        const int row = e / C::kWarpCols;
        const int col = col0 + e % C::kWarpCols;
        const int of = col >> p.log_width;
        if (of >= work.count) continue;
        const auto sums =
            *reinterpret_cast<const float2*>(slab + row * C::kSlabStride + e % C::kWarpCols);
        p.output.template store<float>(work.split, p.ids[work.first + of],
                                       ((row0 + s * 16 + row) << p.log_width) + (col & (width - 1)),
                                       sums.x, sums.y);
      }
      __syncwarp();
    }
    __syncthreads();  // the next piece's stages overwrite the slabs
  }
  p.output.template clear_spare<float>(p.ids, p.pieces.crow[p.pieces.lines]);
}

template <class C>
Splits splits_of(const WeightGradientArgs& a, const Device& device, std::size_t bytes) {
  const std::int64_t blocks = C::kCols / a.pattern.block_width;
  const std::int64_t pieces = std::max<std::int64_t>((a.pattern.slots + blocks - 1) / blocks, 1);
  return choose_splits(a, pieces, C::kStageTokens, device.multiprocessors * C::kCtas, bytes);
}

template <class C>
Status launch(const WeightGradientArgs& a, Stream stream) {
  const PatternView& w = a.pattern;
  Device device;
  Status s = current_device(&device);
  if (s.ok()) s = allow_shared_memory(kernel<C>, C::kBytes);
  if (!s.ok()) return s;
  const Splits splits =
      splits_of<C>(a, device, a.workspace.data == nullptr ? 0 : a.workspace.bytes);
  const Params params{
      {w.crow_indices, static_cast<int>(w.n_block_rows()), static_cast<int>(a.tokens), splits.count,
       splits.tokens},
      w.col_indices,
      w.block_ids,
      std::countr_zero(static_cast<unsigned>(w.block_width)),
      static_cast<const float*>(a.dy),
      a.lddy,
      static_cast<const float*>(a.x),
      a.ldx,
      {a.dvalues, splits.count > 1 ? static_cast<float*>(a.workspace.data) : nullptr, w.slots,
       static_cast<int>(w.block_height * w.block_width), true, a.accumulate}};
  kernel<C><<<static_cast<unsigned>(device.multiprocessors * C::kCtas), C::kThreads, C::kBytes,
              stream>>>(params);
  s = to_status(cudaGetLastError(), "launching the portable f32 weight gradient kernel");
  return s.ok() ? finish_weight_gradient(a, splits.count, stream) : s;
}

/// Calls `f` with a value of the configuration that takes these arguments.
template <class Math, class F>
auto with_config_of(const WeightGradientArgs& a, F&& f) {
  switch (a.pattern.block_height) {
    case 16:
      return f(typename ConfigOf<Math, 16>::Type());
    case 32:
      return f(typename ConfigOf<Math, 32>::Type());
    case 64:
      return f(typename ConfigOf<Math, 64>::Type());
    default:
      return f(typename ConfigOf<Math, 128>::Type());
  }
}
template <class F>
auto with_config(const WeightGradientArgs& a, F&& f) {
  return a.allow_tf32 ? with_config_of<Tf32>(a, f) : with_config_of<Ffma>(a, f);
}

}  // namespace

const char* refusal(const WeightGradientArgs& a) {
  const PatternView& w = a.pattern;
  if (a.dtype != DataType::f32) return "not float32";
  if (!is_side(w.block_height) || !is_side(w.block_width)) return kSideRefusal;
  if (w.rows % w.block_height != 0 || w.cols % w.block_width != 0) {
    return "features are not whole blocks";
  }
  if (a.tokens < 1 || a.tokens > 0x7fff0000) return "no tokens, or too many";
  if (w.slots > 0x7fffffff / 16) return "too many slots";
  if (!is_aligned(a.dy) || !is_aligned(a.x) || a.lddy % 4 != 0 || a.ldx % 4 != 0) {
    return "rows are not 16-byte aligned";
  }
  return nullptr;
}

Status run(const WeightGradientArgs& a, Stream stream) {
  return with_config(a, [&](auto config) { return launch<decltype(config)>(a, stream); });
}

std::size_t workspace(const WeightGradientArgs& a) {
  Device device;
  if (!current_device(&device).ok()) return 0;
  return with_config(a, [&](auto config) {
    constexpr std::size_t kAny = std::numeric_limits<std::size_t>::max();
    return partial_bytes(a, splits_of<decltype(config)>(a, device, kAny).count);
  });
}

}  // namespace block_sparse::cuda::sm80::gradient
