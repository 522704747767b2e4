// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/plan.h"
#include "cuda/sm80/common/ffma.cuh"
#include "cuda/sm80/spmm/spmm.h"

namespace block_sparse::cuda::sm80::spmm {

/// What a CTA computes: `Tokens` tokens x `Outs` outputs, by warps of WarpTokens x
/// WarpOuts, with `Stages` stages of StageBytes along K in flight and `Ctas` CTAs a
/// multiprocessor.
template <int Tokens, int Outs, int WarpTokens, int WarpOuts, int StageBytes, int Stages, int Ctas>
struct Shape {
  static constexpr int kTokens = Tokens;
  static constexpr int kOuts = Outs;
  static constexpr int kWarpTokens = WarpTokens;
  static constexpr int kWarpOuts = WarpOuts;
  static constexpr int kStageBytes = StageBytes;
  static constexpr int kStages = Stages;
  static constexpr int kCtas = Ctas;
};

/// The shape for `Lines` lines of blocks `Height` outputs high, the best measured on
/// an H100 of those that fit the 99 KB that a CTA has on Ada.
template <class Math, int Height, int Lines>
struct ShapeOf {
  // Every warp has all lines, so that the warps' work is the same whichever of
  // them store a block.
  using Type = Shape<128, Height * Lines, 32, Height * Lines, 64, 3, 2>;
};
template <class Math>
struct ShapeOf<Math, 16, 1> {
  using Type = Shape<256, 16, 64, 16, 64, 3, 4>;
};
template <class Math>
struct ShapeOf<Math, 32, 1> {
  using Type = Shape<256, 32, 64, 32, 64, 3, 4>;
};
template <>
struct ShapeOf<Tf32, 32, 1> {
  using Type = Shape<256, 32, 64, 32, 128, 2, 3>;
};
template <class Math>
struct ShapeOf<Math, 64, 1> {
  using Type = Shape<256, 64, 64, 64, 64, 4, 2>;
};
template <class Math>
struct ShapeOf<Math, 128, 1> {
  using Type = Shape<128, 128, 64, 64, 128, 3, 2>;
};
// 16 x 8 sums a thread; 8 x 8 where the outputs leave too few threads.
template <>
struct ShapeOf<Ffma, 16, 1> {
  using Type = Shape<256, 16, 128, 16, 64, 3, 4>;
};
template <>
struct ShapeOf<Ffma, 32, 1> {
  using Type = Shape<256, 32, 128, 32, 64, 3, 4>;
};
template <>
struct ShapeOf<Ffma, 64, 1> {
  using Type = Shape<128, 64, 128, 32, 64, 4, 4>;
};
template <>
struct ShapeOf<Ffma, 128, 1> {
  using Type = Shape<128, 128, 128, 32, 64, 4, 2>;
};

/// MContiguous: blocks lie with the outputs contiguous (input gradient), else k.
template <class Math_, int Height_, int Lines_, bool MContiguous_>
struct Config : ShapeOf<Math_, Height_, Lines_>::Type {
  using Base = typename ShapeOf<Math_, Height_, Lines_>::Type;
  using Math = Math_;
  using Element = typename Math::Element;
  static constexpr int kHeight = Height_;
  static constexpr int kLines = Lines_;
  static constexpr bool kMContiguous = MContiguous_;

  static constexpr int kWarpsAcross = Base::kOuts / Base::kWarpOuts;
  static constexpr int kThreads = 32 * kWarpsAcross * (Base::kTokens / Base::kWarpTokens);
  static constexpr int kUnit = 16 / int{sizeof(Element)};  // elements of 16 bytes
  static constexpr int kStageK = Base::kStageBytes / int{sizeof(Element)};
  static constexpr int kStepK = 32 / int{sizeof(Element)};
  static constexpr int kSteps = kStageK / kStepK;

  using XTile = TileOf<Math, true, Base::kTokens, Base::kStageBytes>;
  using WTile = TileOf<Math, !kMContiguous, kHeight, Base::kStageBytes>;  // of one line
  using Product = WarpProduct<Math, Base::kWarpTokens, Base::kWarpOuts>;
  static constexpr int kXBytes = Base::kTokens * Base::kStageBytes;
  static constexpr int kLineBytes = kHeight * Base::kStageBytes;
  static constexpr int kStageTotal = kXBytes + kLines * kLineBytes;

  // The epilogue's slab of 16 tokens a warp; 16 bytes more keep its rows in
  // different banks. Slabs lie in a stage's buffer where they fit.
  static constexpr int kSlabStride = Base::kWarpOuts + 4;
  static constexpr int kSlabBytes = 16 * kSlabStride * int{sizeof(float)};
  static constexpr int kSlabsBytes = kThreads / 32 * kSlabBytes;
  static constexpr bool kSlabsInStage = kSlabsBytes <= kStageTotal;
};

struct Params {
  Lines lines;
  int log_width;  // of k of a block
  int groups;     // of lines
  int positions;  // of blocks along K
  int token_tiles;
  int tiles_a_run;  // that a CTA computes
  int runs;
  int runs_in_flight;  // for which all outputs are computed before the next
  int tokens;
  const void* x;
  std::int64_t ldx;
  const void* values;
  const void* bias;
  Activation activation;
  void* preactivation;
  void* y;
  std::int64_t ldy;
};

}  // namespace block_sparse::cuda::sm80::spmm
