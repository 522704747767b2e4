// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda.h>

#include <type_traits>

#include "cuda/ptx/mbarrier.cuh"
#include "cuda/sddmm/output.cuh"
#include "cuda/sm90/cells/pieces.cuh"

namespace block_sparse::cuda::sm90::cells {

constexpr int kConsumers = 2;  // warpgroups that multiply
constexpr int kThreads = 128 * (1 + kConsumers);
// 40 + 2 x 232 registers a thread of the three warpgroups fill the register file.
constexpr int kProducerRegisters = 40;
constexpr int kConsumerRegisters = 232;
constexpr int kMaxStages = 8;

template <class Element_, CellKind Kind, int Cluster>
struct Config {
  using Element = Element_;
  static constexpr int kHeight = Kind.height;
  static constexpr int kWidth = Kind.width;
  static constexpr int kTogether = Kind.together;
  static constexpr int kCluster = Cluster;  // CTAs that share loads
  static constexpr bool kGathered = Kind.gathered();
  static constexpr bool kPaired = Kind.paired();
  static constexpr bool kByRow = Kind.paired_by_row();
  static constexpr int kBox = Kind.box_features();
  /// Whoever works on cells of its own: warps, warpgroups, or, as each
  /// warpgroup takes 64 rows of cells of 128, both together.
  static constexpr int kWorkers = kHeight == 128 ? 1 : kGathered ? kConsumers : 4 * kConsumers;
  static constexpr int kWorkerThreads = kConsumers * 128 / kWorkers;
  static constexpr int kOwned = Kind.accumulators() * kWorkerThreads / Kind.elements();
  static constexpr int kCapacity = kWorkers * kOwned;  // of a CTA
  static constexpr int kPieceCells = kCluster * kCapacity;
  static_assert(kCapacity == Kind.capacity());
  static constexpr int kPanelRows = Kind.panel_rows();
  static constexpr int kPanelColumns = Kind.panel_columns();
  /// Boxes of a panel.
  static constexpr int kRowBoxes = kHeight > kBox ? kHeight / kBox : 1;
  static constexpr int kColumnBoxes = kWidth > kBox ? kWidth / kBox : 1;
};

struct Params {
  Plane plane;
  Rounds rounds;
  const Cell* cells;
  const int* counts;
  SddmmOutput output;
  int block_width;
};

/// Which cell a worker multiplies: where its operands lie in a stage, in units of
/// 16 bytes.
struct Operands {
  std::uint16_t dy;
  std::uint16_t x;
};

/// The same of a pair, as the low words of wgmma's descriptors: of the first cell,
/// and where the two differ also the distance to the second's, in the upper half.
struct PairOperands {
  unsigned dy;
  unsigned x;
};

/// Where a cell's sums go: the slot (-1: nowhere) and the first element in the block.
struct Target {
  int slot;
  int at;
};

/// What goes where in a stage. Boxes that both CTAs of the cluster need are
/// loaded by one of them for both.
struct Box {
  int feature;
  bool of_dy;
  bool loaded_here;
  bool for_both;
};

template <class C>
struct Shared {
  alignas(1024) unsigned char ring[kRingBytes];
  alignas(8) std::uint64_t full[kMaxStages];
  alignas(8) std::uint64_t empty[kMaxStages];
  static constexpr int kProducts = C::kPaired ? C::kOwned / 2 : C::kOwned;  // of a worker
  alignas(
      16) std::conditional_t<C::kGathered, PairOperands, Operands> operands[C::kWorkers][kProducts];
  Target targets[C::kWorkers][C::kOwned];
  Cell cells[C::kPieceCells];
  alignas(16) unsigned row_panels[C::kCluster][kMaxPanels / 32];  // bits, for each CTA
  alignas(16) unsigned column_panels[C::kCluster][kMaxPanels / 32];
  Box boxes[kMaxStageBoxes];
  Piece piece;
  bool found;
};

/// A place in the ring, whose number of stages changes from piece to piece: each
/// stage's parity is kept separately.
struct Place {
  int stage = 0;
  unsigned parities = 0;
  __device__ unsigned parity() const { return parities >> stage & 1; }
  __device__ void advance(int stages) {
    parities ^= 1u << stage;
    if (++stage == stages) stage = 0;
  }
};

/// Tells the CTAs that load into it that this warp has read a stage.
template <class C>
__device__ __forceinline__ void release_stage(std::uint64_t* empty) {
  const unsigned lane = threadIdx.x % 32;
  const unsigned rank = C::kCluster == 1 ? 0 : ptx::cluster_rank();
  if (lane == rank) {
    ptx::barrier_arrive(empty);
  } else if (lane < C::kCluster) {
    ptx::barrier_arrive_cluster(empty, lane);
  }
}

/// What a CTA's threads know of the piece they work on.
struct Task {
  Piece piece;
  int begin;         // of its tokens
  int first, count;  // cells of this CTA, within the piece
  int boxes;
  int box_bytes;
  int stage_bytes;  // the same in both CTAs
  int ring_stages;
  int stages;  // of the tokens
};

/// The first piece of a CTA; the others are as far apart as there are clusters.
template <class C>
__device__ __forceinline__ int first_item(const Params& p) {
  return static_cast<int>(blockIdx.x) / (C::kCluster * p.rounds.parts);
}

}  // namespace block_sparse::cuda::sm90::cells
