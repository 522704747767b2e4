// SPDX-License-Identifier: Apache-2.0
#include "cuda/sm80/decode/decode.h"

#include <algorithm>

#include "cuda/common/element.cuh"
#include "cuda/common/launch.h"
#include "cuda/epilogue/activation.cuh"
#include "cuda/ptx/launch.cuh"
#include "cuda/sm80/common/layout.h"
#include "cuda/sm80/decode/weights.cuh"

namespace block_sparse::cuda::sm80::decode {
namespace {

using generic::SpmmProblem;

/// Strip: `TilesM` x 16 outputs of a line. Tokens: `TilesN` x 8, zeros beyond
/// the last. KContiguous: k runs along the rows of a stored block (forward),
/// else outputs do (input gradient).
template <class Element_, int TilesM_, int TilesN_, bool KContiguous_>
struct Config {
  using Element = Element_;
  static constexpr int kTilesM = TilesM_;
  static constexpr int kTilesN = TilesN_;
  static constexpr int kRows = 16 * kTilesM;
  static constexpr int kTokens = 8 * kTilesN;
  // On its way to shared memory x takes no registers, so that more of it can be under way.
  static constexpr bool kXShared = kTilesN >= 4;
  static constexpr int kWarps = kXShared ? 4 : 8;
  static constexpr int kThreads = 32 * kWarps;
  // CTAs of a multiprocessor at least: as many as there is shared memory for.
  static constexpr int kCtas = kXShared ? 3 : 1;
  // Steps whose loads are in flight together.
  static constexpr int kDepth = kXShared ? 4 : kTilesM * kTilesN > 4 ? 2 : 4 / kTilesM;
  using W = Weights<Element, kTilesM, KContiguous_>;

  static constexpr int kXBytes = kXShared ? kThreads * kDepth * kTilesN * 16 : 0;
  // Of the sums of a token: lanes of a warp write to 32 banks.
  static constexpr int kSumPitch = kRows + 4;
  static constexpr int kSumBytes = kWarps * kTokens * kSumPitch * 4;
  // The sums take the place of x.
  static constexpr int kSharedBytes = std::max(kXBytes, kSumBytes);
};

/// This lane's part of x for one step: 16 bytes of token 8 n + lane / 4 for each n, in
/// registers or in the lane's own places in shared memory, 512 bytes apart.
template <class C, bool Shared = C::kXShared>
struct Operand {
  uint4 x[C::kTilesN];
  __device__ __forceinline__ void load(int n, std::uint32_t, const void* from, bool valid) {
    x[n] = valid ? __ldg(static_cast<const uint4*>(from)) : make_uint4(0, 0, 0, 0);
  }
  __device__ __forceinline__ uint4 get(int n, std::uint32_t) const { return x[n]; }
};
template <class C>
struct Operand<C, true> {
  __device__ __forceinline__ void load(int n, std::uint32_t at, const void* from, bool valid) {
    ptx::copy_async(at + static_cast<std::uint32_t>(n) * 512, from, valid);
  }
  __device__ __forceinline__ uint4 get(int n, std::uint32_t at) const {
    float v[4];
    ptx::load_shared_x4(v, at + static_cast<std::uint32_t>(n) * 512);
    return make_uint4(__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]),
                      __float_as_uint(v[3]));
  }
};

/// This lane's part of W and of x for one step. `at`: the place of x, if in shared memory.
template <class C>
struct Step {
  typename C::W w;
  Operand<C> x;

  /// `k`: position along the blocks of the line laid end to end, from `begin`
  /// on; zeros at and beyond `end` blocks.
  __device__ __forceinline__ void load(const SpmmProblem& p, int begin, int end, int k, int m0,
                                       std::uint32_t at) {
    using T = typename C::Element;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int width = static_cast<int>(p.width);
    const int i = begin + k / width;
    if (i >= end) {
      w.clear();
#pragma unroll
      for (int n = 0; n < C::kTilesN; ++n) x.load(n, at, p.x, false);
      return;
    }
    const int in_block = k % width;
    const T* block =
        static_cast<const T*>(p.values) + std::int64_t(p.lines.block_ids[i]) * (p.height * p.width);
    w.load(block, in_block, m0, static_cast<int>(p.height), width);
    const T* row = static_cast<const T*>(p.x) + std::int64_t(p.lines.others[i]) * width + in_block;
#pragma unroll
    for (int n = 0; n < C::kTilesN; ++n) {
      const int token = n * 8 + lane / 4;
      const bool valid = token < p.tokens;
      x.load(n, at, valid ? row + token * p.ldx : row, valid);
    }
  }

  __device__ __forceinline__ void multiply(std::uint32_t at,
                                           float (&d)[C::kTilesM][C::kTilesN][4]) const {
    std::uint32_t a[C::kTilesM][2][4];
#pragma unroll
    for (int m = 0; m < C::kTilesM; ++m) {
      w.fragment(m, 0, a[m][0]);
      w.fragment(m, 1, a[m][1]);
    }
#pragma unroll
    for (int n = 0; n < C::kTilesN; ++n) {
      const uint4 b = x.get(n, at);
#pragma unroll
      for (int m = 0; m < C::kTilesM; ++m) {
        multiply_words<typename C::Element>(d[m][n], a[m][0], b.x, b.y);
        multiply_words<typename C::Element>(d[m][n], a[m][1], b.z, b.w);
      }
    }
  }
};

/// The sums of a warp's steps of the strip at `m0` of the line. Each step is loaded as soon as
/// the one kDepth before it is multiplied.
template <class C>
__device__ __forceinline__ void multiply_line(const SpmmProblem& p, int line, int m0,
                                              std::uint32_t x,
                                              float (&d)[C::kTilesM][C::kTilesN][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int begin = p.lines.pointers[line];
  const int end = p.lines.pointers[line + 1];
  constexpr int kStepK = kStep<typename C::Element>;
  const int lane_k = lane % 4 * kLaneK<typename C::Element>;
  const int steps = ((end - begin) * static_cast<int>(p.width) + kStepK - 1) / kStepK;
  const int mine = (steps - warp + C::kWarps - 1) / C::kWarps;
  Step<C> step[C::kDepth];
  const auto place = [&](int i) { return x + static_cast<std::uint32_t>(i * C::kTilesN * 512); };
  const auto load = [&](int i, int s) {
    if (s < mine) {
      step[i].load(p, begin, end, (s * C::kWarps + warp) * kStepK + lane_k, m0, place(i));
    }
    if constexpr (C::kXShared) ptx::copy_commit();
  };
#pragma unroll
  for (int i = 0; i < C::kDepth; ++i) load(i, i);
  for (int s = 0; s < mine; s += C::kDepth) {
#pragma unroll
    for (int i = 0; i < C::kDepth; ++i) {
      if (s + i >= mine) break;
      // A lane reads what it copied itself.
      if constexpr (C::kXShared) ptx::copy_wait<C::kDepth - 1>();
      step[i].multiply(place(i), d);
      load(i, s + i + C::kDepth);
    }
  }
}

/// A CTA computes one strip for all tokens; its warps take steps of K in turn
/// and their sums are added in the order of the warps.
template <class C>
__global__ void __launch_bounds__(C::kThreads, C::kCtas) kernel(const SpmmProblem p) {
  using T = typename C::Element;
  extern __shared__ __align__(16) float shared[];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  ptx::wait_for_kernels_before();
  int row0 = static_cast<int>(blockIdx.x) * C::kRows;
  if constexpr (C::kXShared) {
    // Long lines first; with fewer tokens looking them up costs more than it gains.
    if (p.lines.order != nullptr) {
      const int per_tile = max(64, static_cast<int>(p.height)) / C::kRows;
      const int place = static_cast<int>(blockIdx.x);
      row0 = (p.lines.order[place / per_tile] * per_tile + place % per_tile) * C::kRows;
    }
    if (row0 >= p.out) return;  // of the last tile
  }
  const int height = static_cast<int>(p.height);
  const std::uint32_t x =
      static_cast<std::uint32_t>(__cvta_generic_to_shared(shared)) +
      static_cast<std::uint32_t>((warp * C::kDepth * C::kTilesN * 32 + lane) * 16);
  float d[C::kTilesM][C::kTilesN][4] = {};
  multiply_line<C>(p, row0 / height, row0 % height, x, d);
  // Not earlier: CTAs of the next kernel would gather on the multiprocessors that have least to
  // do.
  ptx::allow_next_kernel();
  if constexpr (C::kXShared) {
    ptx::copy_wait<0>();
    __syncthreads();
  }
#pragma unroll
  for (int m = 0; m < C::kTilesM; ++m) {
#pragma unroll
    for (int n = 0; n < C::kTilesN; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int token = n * 8 + lane % 4 * 2 + i % 2;
        shared[(warp * C::kTokens + token) * C::kSumPitch + C::W::row_of(lane, m, i / 2)] =
            d[m][n][i];
      }
    }
  }
  __syncthreads();

  for (int e = static_cast<int>(threadIdx.x); e < C::kTokens * C::kRows; e += C::kThreads) {
    const int token = e / C::kRows;
    const int m = e % C::kRows;
    if (token >= p.tokens) break;
    float v = 0;
#pragma unroll
    for (int w = 0; w < C::kWarps; ++w) v += shared[(w * C::kTokens + token) * C::kSumPitch + m];
    if (p.bias != nullptr) v += widen(static_cast<const T*>(p.bias)[row0 + m]);
    const std::int64_t at = token * p.ldy + row0 + m;
    if (p.preactivation != nullptr) static_cast<T*>(p.preactivation)[at] = narrow<T>(v);
    static_cast<T*>(p.y)[at] = narrow<T>(activate(v, p.activation));
  }
}

template <class C>
Status launch(const SpmmProblem& p, Stream stream) {
  const std::int64_t tiles = tiles_of(p.lines.count, p.height);
  const std::int64_t strips = C::kXShared
                                  ? tiles * (std::max<std::int64_t>(64, p.height) / C::kRows)
                                  : p.lines.count * (p.height / C::kRows);
  if (strips == 0) return {};
  Device device;
  Status s = current_device(&device);
  if constexpr (C::kSharedBytes > 48 * 1024) {
    if (s.ok()) s = allow_shared_memory(kernel<C>, C::kSharedBytes);
  }
  if (!s.ok()) return s;
  return DependentLaunch(device, static_cast<unsigned>(strips), C::kThreads, C::kSharedBytes,
                         stream)("launching the decode kernel", kernel<C>, p);
}

/// More outputs a strip use each load of x more often; fewer leave more CTAs.
template <class Element, int TilesN>
Status launch_strip(const SpmmProblem& p, Stream stream) {
  if (p.stride_k == 1) {
    return TilesN >= 4 && p.height >= 32 ? launch<Config<Element, 2, TilesN, true>>(p, stream)
                                         : launch<Config<Element, 1, TilesN, true>>(p, stream);
  }
  return p.height >= 32 ? launch<Config<Element, 2, TilesN, false>>(p, stream)
                        : launch<Config<Element, 1, TilesN, false>>(p, stream);
}

}  // namespace

Status run_many(const SpmmProblem& p, Stream stream) {
  if (p.dtype == DataType::bf16) return launch_strip<bf16, 8>(p, stream);
  if (p.dtype == DataType::f16) return launch_strip<f16, 8>(p, stream);
  if (p.tokens <= 8) return launch_strip<float, 1>(p, stream);
  if (p.tokens <= 16) return launch_strip<float, 2>(p, stream);
  if (p.tokens <= 32) return launch_strip<float, 4>(p, stream);
  return launch_strip<float, 8>(p, stream);
}

}  // namespace block_sparse::cuda::sm80::decode
