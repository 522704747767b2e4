// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda.h>

#include "cuda/ptx/mbarrier.cuh"
#include "cuda/sm90/common/store.cuh"

namespace block_sparse::cuda::sm90::wide {

constexpr int kCluster = 2;    // CTAs along the tokens, which share the weights
constexpr int kConsumers = 2;  // warpgroups that multiply, 64 outputs each
constexpr int kStageK = 64;    // K of a stage
constexpr int kThreads = 128 * (1 + kConsumers);
// 88 + 2 x 208 registers a thread of the three warpgroups fill the register file.
constexpr int kProducerRegisters = 88;
constexpr int kConsumerRegisters = 208;
constexpr int kWBytes = kOuts * kStageK * 2;  // of a warpgroup and stage

// A tile is stored in boxes of 64 outputs x 128 tokens. The first goes through shared
// memory of its own, the second through that of the tile's last stage.
constexpr int kBoxTokens = 128;
constexpr int kBoxBytes = kBoxTokens * kOuts * 2;

/// MContiguous: blocks lie with the outputs contiguous (input gradient).
template <class Element_, bool MContiguous_, int Tokens_>
struct Config {
  using Element = Element_;
  static constexpr bool kMContiguous = MContiguous_;
  static constexpr int kTokens = Tokens_;  // of a CTA: N of wgmma

  static constexpr int kXBytes = kTokens * kStageK * 2;
  static constexpr int kStageBytes = kXBytes + kConsumers * kWBytes;
  // All of the 227 KB less 32 KB for the stores: 4 stages of 256 tokens, 6 of 128.
  static constexpr int kStages = 196608 / kStageBytes;
  static constexpr int kStores = kTokens / kBoxTokens;
};

/// What a stage holds: bit i says that there is a block for warpgroup i, or, without
/// data, that a tile ends here.
struct alignas(16) StageMeta {
  static constexpr int kTileEnd = 4;
  static constexpr int kAllDone = 8;
  int present;
  int out0[kConsumers];  // of the tile that ends; negative: none
  int token0;
};

/// What a warpgroup has put together for a store warp.
struct alignas(16) StoreOrder {
  int out0;  // negative: no more to come
  int token0;
  int stage;  // that holds the second store
};

template <class C>
struct Shared {
  alignas(1024) unsigned char stages[C::kStages][C::kStageBytes];
  alignas(1024) unsigned char stores[kConsumers][kBoxBytes];
  alignas(8) std::uint64_t full[C::kStages];
  alignas(8) std::uint64_t empty[C::kStages];
  alignas(8) std::uint64_t ordered[kConsumers];  // a tile lies ready to be stored
  alignas(8) std::uint64_t stored[kConsumers];   // and was read
  StageMeta meta[C::kStages];
  StoreOrder orders[kConsumers];

  __device__ unsigned char* x(int stage) { return stages[stage]; }
  __device__ unsigned char* w(int stage, int consumer) {
    return stages[stage] + C::kXBytes + consumer * kWBytes;
  }
  __device__ unsigned char* store(int i, int stage, int consumer) {
    return i == 0 ? stores[consumer] : stages[stage] + consumer * kBoxBytes;
  }
};

struct Params {
  Lines lines;
  int line_height;  // outputs of a whole block
  int line_depth;   // K of a whole block
  int segments;     // tiles of 64 outputs
  int token_tiles;  // of a cluster
  int in_flight;    // token tiles worked on side by side where there is no schedule
  Output output;
};

}  // namespace block_sparse::cuda::sm90::wide
