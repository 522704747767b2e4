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
  static constexpr bool kKContiguous = KContiguous_;
  static constexpr int kRows = 16 * kTilesM;
  static constexpr int kTokens = 8 * kTilesN;
  // The partial sums of all warps fit in 48 KB, and in the L1 of several CTAs.
  static constexpr int kWarps = kTilesM * kTilesN > 8 ? 4 : 8;
  static constexpr int kThreads = 32 * kWarps;
  // CTAs of a multiprocessor at least, 0 for any number: with many tokens there would be registers
  // for one.
  static constexpr int kCtas = kTilesN >= 4 ? 2 : 0;
  // Steps whose loads are in flight together.
  static constexpr int kDepth = kTilesM * kTilesN > 4 ? 2 : 4 / kTilesM;
  using W = Weights<Element, kTilesM, kKContiguous>;
};

/// This lane's part of W and of x (4 words a token tile) for one step.
template <class C>
struct Step {
  typename C::W w;
  std::uint32_t x[C::kTilesN][4];

  /// `k`: position along the blocks of the line laid end to end, from `begin`
  /// on; zeros at and beyond `end` blocks.
  __device__ __forceinline__ void load(const SpmmProblem& p, int begin, int end, int k, int m0) {
    using T = typename C::Element;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int width = static_cast<int>(p.width);
    const int i = begin + k / width;
    if (i >= end) {
      w.clear();
#pragma unroll
      for (auto& tile : x) {
        for (std::uint32_t& word : tile) word = 0;
      }
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
      const uint4 v = token < p.tokens ? __ldg(reinterpret_cast<const uint4*>(row + token * p.ldx))
                                       : make_uint4(0, 0, 0, 0);
      x[n][0] = v.x, x[n][1] = v.y, x[n][2] = v.z, x[n][3] = v.w;
    }
  }

  __device__ __forceinline__ void multiply(float (&d)[C::kTilesM][C::kTilesN][4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int m = 0; m < C::kTilesM; ++m) {
        std::uint32_t a[4];
        w.fragment(m, half, a);
#pragma unroll
        for (int n = 0; n < C::kTilesN; ++n) {
          ptx::mma_16x8x16<typename C::Element>(d[m][n], a, x[n][2 * half], x[n][2 * half + 1]);
        }
      }
    }
  }
};

/// A CTA computes one strip for all tokens; its warps take steps of K in turn
/// and their sums are added in the order of the warps.
template <class C>
__global__ void __launch_bounds__(C::kThreads, C::kCtas) kernel(const SpmmProblem p) {
  using T = typename C::Element;
  __shared__ float partial[C::kWarps][C::kTokens][C::kRows];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int strips = static_cast<int>(p.height) / C::kRows;
  const int line = static_cast<int>(blockIdx.x) / strips;
  const int m0 = static_cast<int>(blockIdx.x) % strips * C::kRows;
  ptx::wait_for_kernels_before();
  const int begin = p.lines.pointers[line];
  const int end = p.lines.pointers[line + 1];
  constexpr int kStepK = kStep<T>;
  const int steps = ((end - begin) * static_cast<int>(p.width) + kStepK - 1) / kStepK;

  float d[C::kTilesM][C::kTilesN][4] = {};
  for (int s = warp; s < steps; s += C::kWarps * C::kDepth) {
    Step<C> step[C::kDepth];
#pragma unroll
    for (int i = 0; i < C::kDepth; ++i) {
      step[i].load(p, begin, end, (s + i * C::kWarps) * kStepK + lane % 4 * 8, m0);
    }
#pragma unroll
    for (int i = 0; i < C::kDepth; ++i) step[i].multiply(d);
  }
  // Not earlier: CTAs of the next kernel would gather on the multiprocessors that have least to
  // do.
  ptx::allow_next_kernel();
#pragma unroll
  for (int m = 0; m < C::kTilesM; ++m) {
#pragma unroll
    for (int n = 0; n < C::kTilesN; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        partial[warp][n * 8 + lane % 4 * 2 + i % 2][C::W::row_of(lane, m, i / 2)] = d[m][n][i];
      }
    }
  }
  __syncthreads();

  const std::int64_t row0 = line * p.height + m0;
  for (int e = static_cast<int>(threadIdx.x); e < C::kTokens * C::kRows; e += C::kThreads) {
    const int token = e / C::kRows;
    const int m = e % C::kRows;
    if (token >= p.tokens) break;
    float v = 0;
#pragma unroll
    for (int w = 0; w < C::kWarps; ++w) v += partial[w][token][m];
    if (p.bias != nullptr) v += widen(static_cast<const T*>(p.bias)[row0 + m]);
    const std::int64_t at = token * p.ldy + row0 + m;
    if (p.preactivation != nullptr) static_cast<T*>(p.preactivation)[at] = narrow<T>(v);
    static_cast<T*>(p.y)[at] = narrow<T>(activate(v, p.activation));
  }
}

template <class C>
Status launch(const SpmmProblem& p, Stream stream) {
  const std::int64_t strips = p.lines.count * (p.height / C::kRows);
  if (strips == 0) return {};
  Device device;
  if (Status s = current_device(&device); !s.ok()) return s;
  return DependentLaunch(device, static_cast<unsigned>(strips), C::kThreads, 0, stream)(
      "launching the decode kernel", kernel<C>, p);
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

template <class Element>
Status launch_tokens(const SpmmProblem& p, Stream stream) {
  if (p.tokens <= 8) return launch_strip<Element, 1>(p, stream);
  if (p.tokens <= 16) return launch_strip<Element, 2>(p, stream);
  if (p.tokens <= 32) return launch_strip<Element, 4>(p, stream);
  const bool low_columns = p.stride_k != 1 && p.height < 32;
  return low_columns ? launch<Config<Element, 1, 8, false>>(p, stream) : run_many(p, stream);
}

}  // namespace

const char* layout_refusal(const SpmmProblem& p) {
  if (p.tokens < 1 || p.tokens > 64) return "not 1 to 64 tokens";
  if (!is_side(p.height) || !is_side(p.width)) return kSideRefusal;
  if (p.out % p.height != 0 || p.in % p.width != 0) return "features are not whole blocks";
  // Positions along K of a line and strips are counted in 32 bits.
  if (p.in > 0x7fff0000 || p.out > 0x7fff0000) return "too many features";
  const auto unit = static_cast<std::int64_t>(16 / size_of(p.dtype));
  if (!is_aligned(p.x) || !is_aligned(p.values) || (p.tokens > 1 && p.ldx % unit != 0)) {
    return "rows are not 16-byte aligned";
  }
  return nullptr;
}

const char* refusal(const SpmmProblem& p) {
  if (p.dtype == DataType::f32 ? !p.allow_tf32 : size_of(p.dtype) != 2) {
    return "not a 16-bit type, nor TF32";
  }
  return layout_refusal(p);
}

Status run(const SpmmProblem& p, Stream stream) {
  if (p.dtype == DataType::f32) return run_many(p, stream);
  return p.dtype == DataType::bf16 ? launch_tokens<bf16>(p, stream) : launch_tokens<f16>(p, stream);
}

}  // namespace block_sparse::cuda::sm80::decode
