// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/ptx/mbarrier.cuh"
#include "cuda/sm80/common/ffma.cuh"

namespace block_sparse::cuda::sm80::gradient {

constexpr int kStageBytes = 64;  // of tokens

/// A CTA's tile of dyᵀ x: `Rows` features of dy x `Cols` of x, by warps of WarpRows
/// x WarpCols. Rows of shared memory are tokens, so
/// both operands lie with their features contiguous.
template <class Math_, int Rows, int Cols, int WarpRows, int WarpCols, int Stages, int Ctas>
struct Config {
  using Math = Math_;
  using Element = typename Math::Element;
  static constexpr int kRows = Rows;
  static constexpr int kCols = Cols;
  static constexpr int kWarpRows = WarpRows;
  static constexpr int kWarpCols = WarpCols;
  static constexpr int kStages = Stages;
  static constexpr int kCtas = Ctas;  // a multiprocessor
  static constexpr int kWarpsAcross = Cols / WarpCols;
  static constexpr int kThreads = 32 * kWarpsAcross * (Rows / WarpRows);
  static constexpr int kUnit = 16 / int{sizeof(Element)};  // elements of 16 bytes
  static constexpr int kStageTokens = kStageBytes / int{sizeof(Element)};

  using DyTile = TileOf<Math, false, Rows, kStageBytes>;
  using XTile = TileOf<Math, false, Cols, kStageBytes>;
  using Product = WarpProduct<Math, WarpRows, WarpCols>;
  static constexpr int kDyBytes = Rows * kStageBytes;
  static constexpr int kStageTotal = kDyBytes + Cols * kStageBytes;
  // Slabs of 16 rows a warp pass through the stages' memory at the end; 16 bytes
  // more keep their rows in different banks.
  static constexpr int kSlabStride = WarpCols + 4;
  static constexpr int kSlabFloats = 16 * kSlabStride;
  static constexpr int kBytes = Stages * kStageTotal;
  static_assert(kThreads / 32 * kSlabFloats * int{sizeof(float)} <= kBytes);
};

/// One operand (tokens, features) as a thread copies it: always the same 16 bytes
/// of a token's row, zeros if they are not there.
template <class T>
struct Operand {
  const T* data;  // the thread's place in the row of token 0
  std::int64_t stride;
  bool valid;
};

/// Starts copying `Features` features of tokens [token, token + stage) to a tile.
template <class C, class Tile, int Features>
__device__ __forceinline__ void load_operand(const Tile& tile,
                                             const Operand<typename C::Element>& operand, int token,
                                             int end) {
  constexpr int kUnits = Features / C::kUnit;
  constexpr int kTokensAtOnce = C::kThreads / kUnits;
  static_assert(C::kThreads % kUnits == 0 && C::kStageTokens % kTokensAtOnce == 0 ||
                kTokensAtOnce > C::kStageTokens);
  const int thread = static_cast<int>(threadIdx.x);
  const auto* from = operand.data + (token + thread / kUnits) * operand.stride;
  const bool whole = token + C::kStageTokens <= end;
#pragma unroll
  for (int row = 0; row < C::kStageTokens; row += kTokensAtOnce) {
    const int at = row + thread / kUnits;
    if (kTokensAtOnce > C::kStageTokens && at >= C::kStageTokens) break;
    const bool valid = operand.valid && (whole || token + at < end);
    ptx::copy_async(tile.unit(at, thread % kUnits), whole || valid ? from : operand.data, valid);
    from += kTokensAtOnce * operand.stride;
  }
}

/// The sums over tokens [begin, end). Afterwards no thread reads the stages any more.
template <class C>
__device__ __forceinline__ void multiply_tokens(typename C::Product& product, std::uint32_t base,
                                                const Operand<typename C::Element>& dy,
                                                const Operand<typename C::Element>& x, int begin,
                                                int end) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int row = warp / C::kWarpsAcross * C::kWarpRows;
  const int col = warp % C::kWarpsAcross * C::kWarpCols;
  const int stages = (end - begin + C::kStageTokens - 1) / C::kStageTokens;
  const auto load = [&](int s) {
    if (s < stages) {
      const std::uint32_t stage = base + s % C::kStages * C::kStageTotal;
      const int token = begin + s * C::kStageTokens;
      load_operand<C, typename C::DyTile, C::kRows>({stage}, dy, token, end);
      load_operand<C, typename C::XTile, C::kCols>({stage + C::kDyBytes}, x, token, end);
    }
    ptx::copy_commit();  // in any case, so that the count of groups stays the same
  };
  for (int s = 0; s < C::kStages - 1; ++s) load(s);
  for (int s = 0; s < stages; ++s) {
    ptx::copy_wait<C::kStages - 2>();
    __syncthreads();
    load(s + C::kStages - 1);
    const std::uint32_t stage = base + s % C::kStages * C::kStageTotal;
#pragma unroll C::Product::kUnroll
    for (int step = 0; step < kStageBytes / 32; ++step) {
      product.multiply(typename C::DyTile{stage}, row, typename C::XTile{stage + C::kDyBytes}, col,
                       step);
    }
  }
  ptx::copy_wait<0>();
  __syncthreads();
}

}  // namespace block_sparse::cuda::sm80::gradient
