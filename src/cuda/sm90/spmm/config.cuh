// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda.h>

#include "block_sparse/types.h"
#include "cuda/plan.h"
#include "cuda/ptx/mbarrier.cuh"

namespace block_sparse::cuda::sm90::spmm {

constexpr int kCluster = 2;    // CTAs along the tokens, which share the weights
constexpr int kConsumers = 2;  // warpgroups that multiply, 64 outputs each
constexpr int kOuts = 64;      // outputs of a warpgroup: M of wgmma
constexpr int kStageK = 64;    // K of a stage
constexpr int kStoreTokens = 64;
constexpr int kThreads = 128 * (1 + kConsumers);
// 40 + 2 x 232 registers a thread of the three warpgroups fill the register file.
constexpr int kProducerRegisters = 40;
constexpr int kConsumerRegisters = 232;
// Cluster tiles of tokens that all outputs are computed for before the next:
// 4 x 2 x 256 tokens of 4096 features are 17 MB, which stay in L2.
constexpr int kTokenTilesInFlight = 4;

/// Height: outputs of a block within a warpgroup's tile (16, 32, 64; taller
/// blocks are cut into 64s). Depth: K of a block within a stage, likewise.
/// MContiguous: blocks lie with the outputs contiguous (input gradient).
template <class Element_, int Height_, int Depth_, bool MContiguous_, int Tokens_>
struct Config {
  using Element = Element_;
  static constexpr int kHeight = Height_;
  static constexpr int kDepth = Depth_;
  static constexpr bool kMContiguous = MContiguous_;
  static constexpr int kTokens = Tokens_;  // of a CTA: N of wgmma

  static constexpr int kLines = kOuts / kHeight;   // of a warpgroup's tile
  static constexpr int kParts = kStageK / kDepth;  // block positions in a stage
  static constexpr int kWalkers = kConsumers * kLines;
  static constexpr bool kRegisterWeights = kHeight < kOuts;

  static constexpr int kXPartBytes = kTokens * kDepth * 2;
  static constexpr int kXBytes = kXPartBytes * kParts;
  static constexpr int kBlockBytes = kHeight * kDepth * 2;
  static constexpr int kTileBytes = kLines * kBlockBytes;  // of a warpgroup and part
  static constexpr int kWBytes = kTileBytes * kConsumers * kParts;
  static constexpr int kStageBytes = kXBytes + kWBytes;
  static constexpr int kStoreBytes = kStoreTokens * kOuts * 2;
  // All of the 227 KB less 32 KB for the stores: 4 stages of 256 tokens, 6 of 128.
  static constexpr int kStages = 196608 / kStageBytes;
};

/// What a stage holds: bit (part, consumer, line) says that the block is there.
struct StageMeta {
  unsigned present;
  unsigned last;  // of the tile
};

template <class C>
struct Shared {
  alignas(1024) unsigned char stages[C::kStages][C::kStageBytes];
  alignas(1024) unsigned char stores[kConsumers][2][C::kStoreBytes];
  alignas(8) std::uint64_t full[C::kStages];
  alignas(8) std::uint64_t empty[C::kStages];
  StageMeta meta[C::kStages];

  __device__ unsigned char* x(int stage, int part) { return stages[stage] + part * C::kXPartBytes; }
  __device__ unsigned char* w(int stage, int part, int consumer) {
    return stages[stage] + C::kXBytes + (part * kConsumers + consumer) * C::kTileBytes;
  }
};

struct Params {
  Lines lines;
  int line_height;  // outputs of a whole block
  int line_depth;   // K of a whole block
  int segments;     // tiles of 64 outputs
  int out;
  int tokens;
  int token_tiles;  // of a cluster
  const void* bias;
  Activation activation;
  void* preactivation;
  void* y;
  std::int64_t ldy;
};

/// Which tile a cluster works on: all outputs, heaviest first, for a few tiles
/// of tokens, then the next few.
struct Work {
  int pair;  // segments 2 pair and 2 pair + 1
  int token_tile;
};
__device__ __forceinline__ int pairs_of(const Params& p) { return (p.segments + 1) / kConsumers; }
__device__ __forceinline__ Work work_of(const Params& p, int item) {
  const int pairs = pairs_of(p);
  const int round = item / (pairs * kTokenTilesInFlight);
  const int rest = item - round * pairs * kTokenTilesInFlight;
  const int first = round * kTokenTilesInFlight;
  const int width = min(kTokenTilesInFlight, p.token_tiles - first);
  return {rest / width, first + rest % width};
}

/// The first line of a segment and its offset within a taller line.
struct Segment {
  int line;
  int offset;
};
__device__ __forceinline__ Segment segment_of(const Params& p, int segment) {
  const int a_line = max(p.line_height / kOuts, 1);
  const int tile = segment / a_line;
  const int ordered = p.lines.order == nullptr ? tile : p.lines.order[tile];
  return {ordered * max(kOuts / p.line_height, 1), (segment - tile * a_line) * kOuts};
}

}  // namespace block_sparse::cuda::sm90::spmm
