// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda.h>

#include "cuda/ptx/mbarrier.cuh"
#include "cuda/sm90/common/store.cuh"

namespace block_sparse::cuda::sm90::lists {

constexpr int kConsumers = 3;       // warpgroups that multiply
constexpr int kConsumerOuts = 128;  // outputs of each
constexpr int kTokens = 128;        // of a CTA: two tiles of M = 64
constexpr int kBoxK = 64;           // features of a box of x
constexpr int kStageK = 2 * kBoxK;  // and of a stage
constexpr int kWindow = 32;         // block positions along K that are listed at a time
constexpr int kThreads = 128 * (1 + kConsumers);
// 32 + 3 x 160 registers a thread of the four warpgroups fill the register file.
constexpr int kProducerRegisters = 32;
constexpr int kConsumerRegisters = 160;
constexpr int kBoxBytes = kTokens * kBoxK * 2;
constexpr int kStageBytes = 2 * kBoxBytes;
constexpr int kMaxStages = 5;
constexpr int kBatches = 8;                                    // lists of blocks under way
constexpr int kSegments = kConsumers * kConsumerOuts / kOuts;  // of a CTA
// What x and the blocks share; the rest holds barriers and lists.
constexpr int kRingBytes = 214 * 1024;
// Bytes of x that all outputs are computed for before the next: they stay in L2.
constexpr int kInFlightBytes = 18 << 20;

/// Blocks of Height outputs x Depth of K. NContiguous: they lie with the outputs
/// contiguous (input gradient). Cluster: CTAs with the same tokens, which share x.
template <class Element_, int Height_, int Depth_, bool NContiguous_, int Cluster_>
struct Config {
  using Element = Element_;
  static constexpr int kHeight = Height_;
  static constexpr int kDepth = Depth_;
  static constexpr bool kNContiguous = NContiguous_;
  static constexpr int kCluster = Cluster_;

  static constexpr int kRows = kConsumerOuts / kHeight;  // block rows of a consumer
  static constexpr int kLines = kConsumers * kRows;      // of a CTA
  static constexpr int kParts = kStageK / kDepth;        // block positions in a stage
  static constexpr int kSums = kHeight / 2;              // of a thread, 64 tokens and a row
  static constexpr int kBlockBytes = kHeight * kDepth * 2;
  static constexpr int kBlockRowBytes = (kNContiguous ? kHeight : kDepth) * 2;
  static constexpr int kWindowStages = kWindow / kParts;
  static constexpr int kMaxBatch = kLines * kParts / 2;  // blocks of half a stage
  static_assert(kLines <= 32, "a lane a line");
  static_assert(kParts <= 8, "a byte a line");
};

/// The sums of a thread of a consumer: those of 64 tokens, then of the other 64.
template <class C>
using Sums = float[2][C::kRows][C::kSums];

/// A batch of blocks for one consumer: a bit a part and row says that the block is there.
template <class C>
struct List {
  static constexpr unsigned kMore = 1u << 31;  // the stage has another batch

  unsigned rows[C::kRows / 4];  // a byte each
  unsigned first;               // the first block's place in the ring of blocks, and kMore
};

/// The blocks of a stage, or of half of one with many, for all of the CTA.
struct Batch {
  int before;   // how many there were before them since the kernel's start
  short place;  // of the first one in the ring
  short count;
  int more;  // the stage has another batch
};
// Lists of batches: up to kBatches that are not loaded yet, and as many that are.
constexpr int kListed = 2 * kBatches;

/// Blocks of the CTA's lines in 32 positions along K.
template <class C>
struct Window {
  unsigned present[C::kLines];
  int slots[C::kLines][kWindow];
};

template <class C>
struct Shared {
  alignas(1024) unsigned char ring[kRingBytes];  // stages of x, then blocks
  alignas(8) std::uint64_t x_full[kMaxStages];
  alignas(8) std::uint64_t x_empty[kMaxStages];
  alignas(8) std::uint64_t full[kBatches];
  alignas(8) std::uint64_t empty[kBatches];
  alignas(8) std::uint64_t listed[kBatches];
  alignas(8) std::uint64_t listed_empty[kBatches];
  alignas(8) std::uint64_t window_full[2];
  alignas(8) std::uint64_t window_empty[2];
  // Batch i at i % kListed.
  alignas(8) List<C> lists[kListed][kConsumers];
  Batch batches[kListed];
  int slots[kBatches][C::kMaxBatch];
  Window<C> windows[2];
};

struct Params {
  Lines lines;
  int chunks;    // stages along K
  int segments;  // tiles of 64 outputs
  int groups;    // of the outputs of a cluster
  int token_tiles;
  int in_flight;  // token tiles worked on side by side
  int stages;     // of x
  int blocks;     // places in the ring of blocks
  const void* values;
  Output output;
};

/// Which tile a cluster works on: all outputs, heaviest first, for a few tiles
/// of tokens, then the next few.
struct Work {
  int group;
  int token_tile;
};
__device__ __forceinline__ Work work_of(const Params& p, int item) {
  const int round = item / (p.groups * p.in_flight);
  const int rest = item - round * p.groups * p.in_flight;
  const int first = round * p.in_flight;
  const int width = min(p.in_flight, p.token_tiles - first);
  return {rest / width, first + rest % width};
}

/// Calls `f` for each tile of this CTA: its first segment and its first token.
template <class C, class F>
__device__ __forceinline__ void for_each_tile(const Params& p, F&& f) {
  const int rank = C::kCluster == 1 ? 0 : static_cast<int>(ptx::cluster_rank());
  const int items = p.groups * p.token_tiles;
  for (int item = blockIdx.x / C::kCluster; item < items; item += gridDim.x / C::kCluster) {
    const Work work = work_of(p, item);
    f((work.group * C::kCluster + rank) * kSegments, work.token_tile * kTokens);
  }
}

/// The line that is row `row` of all rows of the tile, or -1.
template <class C>
__device__ __forceinline__ int line_of(const Params& p, int first_segment, int row) {
  constexpr int kInSegment = kOuts / C::kHeight;
  const int segment = first_segment + row / kInSegment;
  if (segment >= p.segments) return -1;
  const int line = segment_of(p.lines, C::kHeight, segment).line + row % kInSegment;
  return line < p.lines.count ? line : -1;
}

/// A position in a ring whose length is known at run time.
struct StageRing {
  int stage = 0;
  unsigned parity = 0;
  __device__ __forceinline__ void advance(int stages) {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

}  // namespace block_sparse::cuda::sm90::lists
