// SPDX-License-Identifier: Apache-2.0
#include "cuda/sm80/decode/decode.h"

#include <algorithm>

#include "cuda/common/device.h"
#include "cuda/common/element.cuh"
#include "cuda/epilogue/activation.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/sm80/common/layout.h"

namespace block_sparse::cuda::sm80::decode {
namespace {

using generic::SpmmProblem;

// K of a step. Lane l takes 8 consecutive k, those from 8 (l % 4) on: 16 bytes
// of a row. The sum over k does not care which of the 16 k of an mma an element
// stands for as long as W and x agree, so both go from memory into fragments
// as they lie.
constexpr int kStep = 32;

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
  // Steps whose loads are in flight together.
  static constexpr int kDepth = kTilesM * kTilesN > 4 ? 2 : 4 / kTilesM;
  // Words of W that a lane holds for a step.
  static constexpr int kWords = 8 * kTilesM;
};

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

/// This lane's part of W (words) and of x (4 words a token tile) for one step.
template <class C>
struct Step {
  std::uint32_t w[C::kWords];
  std::uint32_t x[C::kTilesN][4];

  /// `k`: position along the blocks of the line laid end to end, from `begin`
  /// on; zeros at and beyond `end` blocks.
  __device__ __forceinline__ void load(const SpmmProblem& p, int begin, int end, int k, int m0) {
    using T = typename C::Element;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int width = static_cast<int>(p.width);
    const int i = begin + k / width;
    if (i >= end) {
#pragma unroll
      for (std::uint32_t& word : w) word = 0;
#pragma unroll
      for (auto& tile : x) {
        for (std::uint32_t& word : tile) word = 0;
      }
      return;
    }
    const int in_block = k % width;
    const T* block =
        static_cast<const T*>(p.values) + std::int64_t(p.lines.block_ids[i]) * (p.height * p.width);
    if constexpr (C::kKContiguous) {
#pragma unroll
      for (int r = 0; r < 2 * C::kTilesM; ++r) {
        load_once<4>(w + 4 * r, block + (m0 + r * 8 + lane / 4) * width + in_block);
      }
    } else {
      const int height = static_cast<int>(p.height);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        load_once<C::kTilesM>(w + C::kTilesM * j,
                              block + (in_block + j) * height + m0 + lane / 4 * 2 * C::kTilesM);
      }
    }
    const T* row = static_cast<const T*>(p.x) + std::int64_t(p.lines.others[i]) * width + in_block;
#pragma unroll
    for (int n = 0; n < C::kTilesN; ++n) {
      const int token = n * 8 + lane / 4;
      const uint4 v = token < p.tokens ? __ldg(reinterpret_cast<const uint4*>(row + token * p.ldx))
                                       : make_uint4(0, 0, 0, 0);
      x[n][0] = v.x, x[n][1] = v.y, x[n][2] = v.z, x[n][3] = v.w;
    }
  }

  /// The fragment of tile m for the lane's k 4 half to 4 half + 3.
  __device__ __forceinline__ void fragment(int m, int half, std::uint32_t (&a)[4]) const {
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      const int of_eight = 2 * half + pair;
      if constexpr (C::kKContiguous) {
        a[2 * pair] = w[8 * m + of_eight];
        a[2 * pair + 1] = w[8 * m + 4 + of_eight];
      } else {
        const std::uint32_t even = w[C::kTilesM * (2 * of_eight) + m];
        const std::uint32_t odd = w[C::kTilesM * (2 * of_eight + 1) + m];
        a[2 * pair] = __byte_perm(even, odd, 0x5410);
        a[2 * pair + 1] = __byte_perm(even, odd, 0x7632);
      }
    }
  }

  __device__ __forceinline__ void multiply(float (&d)[C::kTilesM][C::kTilesN][4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int m = 0; m < C::kTilesM; ++m) {
        std::uint32_t a[4];
        fragment(m, half, a);
#pragma unroll
        for (int n = 0; n < C::kTilesN; ++n) {
          ptx::mma_16x8x16<typename C::Element>(d[m][n], a, x[n][2 * half], x[n][2 * half + 1]);
        }
      }
    }
  }
};

/// The strip's row that accumulator row lane / 4 + 8 `high` of tile m stands for.
template <class C>
__device__ __forceinline__ int row_of(int lane, int m, int high) {
  return C::kKContiguous ? m * 16 + high * 8 + lane / 4 : (lane / 4 * C::kTilesM + m) * 2 + high;
}

/// A CTA computes one strip for all tokens; its warps take steps of K in turn
/// and their sums are added in the order of the warps.
template <class C>
__global__ void __launch_bounds__(C::kThreads) kernel(const SpmmProblem p) {
  using T = typename C::Element;
  __shared__ float partial[C::kWarps][C::kTokens][C::kRows];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int strips = static_cast<int>(p.height) / C::kRows;
  const int line = static_cast<int>(blockIdx.x) / strips;
  const int m0 = static_cast<int>(blockIdx.x) % strips * C::kRows;
  const int begin = p.lines.pointers[line];
  const int end = p.lines.pointers[line + 1];
  const int steps = ((end - begin) * static_cast<int>(p.width) + kStep - 1) / kStep;

  float d[C::kTilesM][C::kTilesN][4] = {};
  for (int s = warp; s < steps; s += C::kWarps * C::kDepth) {
    Step<C> step[C::kDepth];
#pragma unroll
    for (int i = 0; i < C::kDepth; ++i) {
      step[i].load(p, begin, end, (s + i * C::kWarps) * kStep + lane % 4 * 8, m0);
    }
#pragma unroll
    for (int i = 0; i < C::kDepth; ++i) step[i].multiply(d);
  }
#pragma unroll
  for (int m = 0; m < C::kTilesM; ++m) {
#pragma unroll
    for (int n = 0; n < C::kTilesN; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        partial[warp][n * 8 + lane % 4 * 2 + i % 2][row_of<C>(lane, m, i / 2)] = d[m][n][i];
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
  if (strips > 0) kernel<C><<<static_cast<unsigned>(strips), C::kThreads, 0, stream>>>(p);
  return to_status(cudaGetLastError(), "launching the decode kernel");
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
  return launch_strip<Element, 8>(p, stream);
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
  if (p.dtype != DataType::bf16 && p.dtype != DataType::f16) return "not a 16-bit type";
  return layout_refusal(p);
}

Status run(const SpmmProblem& p, Stream stream) {
  return p.dtype == DataType::bf16 ? launch_tokens<bf16>(p, stream) : launch_tokens<f16>(p, stream);
}

}  // namespace block_sparse::cuda::sm80::decode
