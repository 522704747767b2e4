// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda.h>

#include "cuda/ptx/mbarrier.cuh"
#include "cuda/sm90/common/store.cuh"

namespace block_sparse::cuda::sm90::wide {

constexpr int kCluster = 2;    // CTAs along the tokens, which share the weights
constexpr int kConsumers = 2;  // warpgroups that multiply, 64 outputs each
constexpr int kThreads = 128 * (1 + kConsumers);
// 88 + 2 x 208 registers a thread of the three warpgroups fill the register file.
constexpr int kProducerRegisters = 88;
constexpr int kConsumerRegisters = 208;
constexpr int kSteps = 8;  // of the walk along K that are found ahead

/// Side: of blocks, 16 or 32, or of the part of one that is loaded at a time, 64.
/// MContiguous: they lie with the outputs contiguous (input gradient).
template <class Element_, int Side_, bool MContiguous_, int Tokens_>
struct Config {
  using Element = Element_;
  static constexpr int kSide = Side_;
  static constexpr bool kMContiguous = MContiguous_;
  static constexpr int kTokens = Tokens_;  // of a CTA: N of wgmma

  static constexpr int kLines = kOuts / kSide;  // of a warpgroup's tile
  static constexpr int kTileLines = kConsumers * kLines;
  // x in boxes with rows of 64 bytes at least: with less L2 sends half as much.
  static constexpr int kStageK = kSide == 64 ? 64 : 32;
  static constexpr int kParts = kStageK / kSide;  // blocks along K
  static constexpr int kBlocks = kParts * kTileLines;

  static constexpr int kXBytes = kTokens * kStageK * 2;
  static constexpr int kBlockBytes = kSide * kSide * 2;
  static constexpr int kStageBytes = kXBytes + kBlocks * kBlockBytes;
  // Parts of 64 are loaded as what wgmma reads, blocks less wide as rows of 128 bytes, one
  // after the other: how many rows there are is what decides.
  static constexpr int kWRows = kSide == 64 ? 64 : kBlockBytes / 128;
  // All of the 227 KB less 32 KB for the stores.
  static constexpr int kStages = 196608 / kStageBytes;

  static constexpr int kRowBytes = kSide * 2;  // of a token in a store
};

/// What a stage or a step holds, as bits: the first say of each of its places for a block,
/// (part, line), whether there is one; the others, with or without data, what ends there.
constexpr int kBlockBits = 0xffff;
constexpr int kTileEnd = 1 << 16;
constexpr int kAllDone = 1 << 17;

template <class C>
struct StageMeta {
  int bits;
  // Of the tile, where it ends:
  int token0;
  int out0[C::kTileLines];  // negative: none
};

/// A box of x, and the blocks that are multiplied with it.
template <class C>
struct Step {
  int bits;
  int token_tile;
  int k;
  int out0[C::kTileLines];
  int slots[C::kBlocks];  // of the blocks there are
};

/// What a warpgroup has put together for a store warp.
template <class C>
struct StoreOrder {
  int token0;  // negative: no more to come
  int is_y;
  int out0[C::kLines];
};

template <class C>
struct Shared {
  alignas(1024) unsigned char stages[C::kStages][C::kStageBytes];
  alignas(1024) unsigned char stores[kConsumers][2][kStoreBytes];
  alignas(8) std::uint64_t full[C::kStages];
  alignas(8) std::uint64_t empty[C::kStages];
  alignas(8) std::uint64_t found[kSteps];
  alignas(8) std::uint64_t passed[kSteps];
  alignas(8) std::uint64_t ordered[kConsumers][2];  // a part of a tile lies ready to be stored
  alignas(8) std::uint64_t stored[kConsumers][2];   // and was read
  StageMeta<C> meta[C::kStages];
  Step<C> steps[kSteps];
  StoreOrder<C> orders[kConsumers][2];

  __device__ unsigned char* x(int stage) { return stages[stage]; }
  __device__ unsigned char* w(int stage, int block) {
    return stages[stage] + C::kXBytes + block * C::kBlockBytes;
  }
};

struct Params {
  Lines lines;
  int line_height;  // outputs of a whole block
  int line_depth;   // K of a whole block
  int rows;         // lines, those of taller blocks cut into 64 outputs
  int token_tiles;  // of a cluster
  int in_flight;    // token tiles worked on side by side where there is no schedule
  Output output;
};

template <class C>
__device__ __forceinline__ int pairs_of(const Params& p) {
  return (p.rows + C::kTileLines - 1) / C::kTileLines;
}

}  // namespace block_sparse::cuda::sm90::wide
