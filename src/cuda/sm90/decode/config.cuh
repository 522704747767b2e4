// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda.h>

#include "cuda/common/element.cuh"
#include "cuda/generic/generic.h"
#include "cuda/ptx/mbarrier.cuh"

namespace block_sparse::cuda::sm90::decode {

using generic::SpmmProblem;

constexpr int kOuts = 64;     // of a cluster
constexpr int kStageK = 64;   // K of a stage
constexpr int kLoader = 128;  // the first thread of the warp that loads
constexpr int kThreads = kLoader + 32;
constexpr int kSumPitch = kOuts + 4;  // of a token: lanes of a warp write to 32 banks

/// MContiguous: blocks lie with the outputs contiguous (input gradient).
template <class Element_, bool MContiguous_, int Tokens_>
struct Config {
  using Element = Element_;
  static constexpr bool kMContiguous = MContiguous_;
  static constexpr int kTokens = Tokens_;  // N of wgmma
  static constexpr int kXBytes = kTokens * kStageK * 2;
};

/// What a CTA works on: 64 outputs, every `ctas`-th stage along K.
struct Work {
  int out0;
  int rank, ctas;
};

}  // namespace block_sparse::cuda::sm90::decode
