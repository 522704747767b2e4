// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda.h>

#include "cuda/ptx/mbarrier.cuh"
#include "cuda/sm90/common/store.cuh"

namespace block_sparse::cuda::sm90::spmm {

constexpr int kCluster = 2;    // CTAs along the tokens, which share the weights
constexpr int kConsumers = 2;  // warpgroups that multiply, 64 outputs each
constexpr int kStageK = 64;    // K of a stage
constexpr int kLoaders = 4;    // warps that load
constexpr int kThreads = 128 * (1 + kConsumers);
// 56 + 2 x 224 registers a thread of the three warpgroups fill the register file.
constexpr int kProducerRegisters = 56;
constexpr int kConsumerRegisters = 224;

/// Side: of the blocks, 16 or 32. MContiguous: they lie with the outputs contiguous
/// (input gradient).
template <class Element_, int Side_, bool MContiguous_, int Tokens_>
struct Config {
  using Element = Element_;
  static constexpr int kSide = Side_;
  static constexpr bool kMContiguous = MContiguous_;
  static constexpr int kTokens = Tokens_;  // of a CTA: N of wgmma

  static constexpr int kLines = kOuts / kSide;    // of a warpgroup's tile
  static constexpr int kParts = kStageK / kSide;  // block positions in a stage
  static constexpr int kWalkers = kConsumers * kLines;

  // x comes in boxes as wide as a part; but rows of 32 bytes would cost L2 as many
  // requests as rows of 64, and at most densities all four parts are needed.
  static constexpr int kXDepth = kSide == 16 ? kStageK : kSide;
  static constexpr int kBoxes = kStageK / kXDepth;
  static constexpr int kGroup = kXDepth / kSide;  // parts of a box
  static constexpr int kXBoxBytes = kTokens * kXDepth * 2;
  static constexpr int kXBytes = kXBoxBytes * kBoxes;
  static constexpr int kBlockBytes = kSide * kSide * 2;
  static constexpr int kTileBytes = kLines * kBlockBytes;  // of a warpgroup and part
  static constexpr int kWBytes = kTileBytes * kConsumers * kParts;
  static constexpr int kStageBytes = kXBytes + kWBytes;
  // Of the 227 KB 16 go to the stores: 4 stages of 256 tokens, 6 of 128.
  static constexpr int kStages = 196608 / kStageBytes;
};

/// What the parts of a stage hold: bit (consumer, line) says that the block is
/// there; `kLast`, in the last part, that the tile ends here.
struct StageMeta {
  static constexpr unsigned kLast = 1u << 15;
  std::uint16_t parts[4];
};

template <class C>
struct Shared {
  alignas(1024) unsigned char stages[C::kStages][C::kStageBytes];
  alignas(1024) unsigned char stores[kConsumers][kStoreBytes];
  alignas(8) std::uint64_t full[C::kStages];
  alignas(8) std::uint64_t empty[C::kStages];
  alignas(8) StageMeta meta[C::kStages];
  Slots<C::kWalkers> slots[kLoaders];

  __device__ unsigned char* x(int stage, int box) { return stages[stage] + box * C::kXBoxBytes; }
  __device__ unsigned char* w(int stage, int part, int consumer) {
    return stages[stage] + C::kXBytes + (part * kConsumers + consumer) * C::kTileBytes;
  }
};

struct Params {
  Lines lines;
  int positions;    // of blocks along K
  int segments;     // tiles of 64 outputs
  int token_tiles;  // of a cluster
  int in_flight;    // token tiles worked on side by side
  Output output;
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
  const int round = item / (pairs * p.in_flight);
  const int rest = item - round * pairs * p.in_flight;
  const int first = round * p.in_flight;
  const int width = min(p.in_flight, p.token_tiles - first);
  return {rest / width, first + rest % width};
}

}  // namespace block_sparse::cuda::sm90::spmm
