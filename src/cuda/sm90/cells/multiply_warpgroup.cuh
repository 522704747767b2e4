// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/ptx/wgmma.cuh"
#include "cuda/sm90/cells/setup.cuh"
#include "cuda/sm90/cells/store.cuh"

namespace block_sparse::cuda::sm90::cells {

/// A consumer warpgroup that multiplies cells of 64 x 64, or 64 rows of cells of
/// 128 x 128: D (64 x width) of each, straight from shared memory.
template <class C>
struct WarpgroupMultiplier {
  static constexpr int kStageTokens = 32;
  using Mma = ptx::Wgmma<typename C::Element, C::kWidth>;

  const Params& p;
  Shared<C>& shared;
  const int consumer = static_cast<int>(threadIdx.x) / 128 - 1;
  const int worker = C::kWorkers == 1 ? 0 : consumer;
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  Place at{};
  float d[C::kOwned][C::kWidth / 2];

  __device__ __forceinline__ void fence() {
#pragma unroll
    for (int j = 0; j < C::kOwned; ++j) ptx::wgmma_fence(d[j]);
  }
  __device__ __forceinline__ void release(int stage) const { release_stage(&shared.empty[stage]); }
  /// Rows of the cell that precede this warpgroup's.
  __device__ int row0() const { return C::kRowBoxes == 1 ? 0 : consumer * kBoxFeatures; }

  /// Sums `Count` cells over the stages. The count is a template argument, as
  /// ptxas serialises wgmmas that lie behind a branch of their own.
  template <int Count>
  __device__ __forceinline__ void sum(const Task& task) {
    constexpr int kBoxBytes = kStageTokens * kBoxFeatures * 2;
    unsigned words[C::kOwned];
#pragma unroll
    for (int j = 0; j < Count; ++j) {
      words[j] = __shfl_sync(~0u, shared.operands[worker][j].word, 0);
    }
    int in_flight = -1;
    for (int s = 0; s < task.stages; ++s) {
      const int stage = at.stage;
      ptx::barrier_wait(&shared.full[stage], at.parity());
      at.advance(task.ring_stages);
      if constexpr (Count == 0) {
        release(stage);
        continue;
      }
      // Descriptors differ in their addresses, which do not reach the high word.
      const std::uint64_t base =
          ptx::operand<128>(ptx::shared_address(shared.ring) + stage * task.stage_bytes, kBoxBytes);
      const auto operand = [&](std::uint32_t offset) {
        return (base >> 32 << 32) | (static_cast<std::uint32_t>(base) + offset);
      };
      fence();
      ptx::wgmma_begin();
#pragma unroll
      for (int step = 0; step < kStageTokens / 16; ++step) {
#pragma unroll
        for (int j = 0; j < Count; ++j) {
          const Operands of{words[j]};
          constexpr int kStep = 16 * 128 / 16;
          Mma::template shared<true, true>(
              d[j], operand(of.dy() + row0() * (kBoxBytes / 64 / 16) + step * kStep),
              operand(of.x() + step * kStep));
        }
      }
      ptx::wgmma_commit();
      fence();
      ptx::wgmma_wait<1>();
      if (in_flight >= 0) release(in_flight);
      in_flight = stage;
    }
    ptx::wgmma_wait<0>();
    fence();
    if (in_flight >= 0) release(in_flight);
  }

  template <int Count>
  __device__ __forceinline__ void sum_count(const Task& task, int count) {
    if constexpr (Count < C::kOwned) {
      if (count > Count) return sum_count<Count + 1>(task, count);
    }
    sum<Count>(task);
  }

  __device__ __forceinline__ void run(const Task& task) {
#pragma unroll
    for (int j = 0; j < C::kOwned; ++j) {
#pragma unroll
      for (float& v : d[j]) v = 0;
    }
    at.stage = 0;
    const int count = __shfl_sync(~0u, cells_of<C>(task, worker), 0);
    sum_count<0>(task, count);
    const CellStore<C> store{p, task, shared.targets[worker]};
#pragma unroll
    for (int j = 0; j < C::kOwned; ++j) {
      if (j >= count) continue;
      const int row = row0() + warp * 16 + lane / 4;
#pragma unroll
      for (int i = 0; i < C::kWidth / 2; i += 2) {
        store(j, row + i / 2 % 2 * 8, i / 4 * 8 + lane % 4 * 2, d[j][i], d[j][i + 1]);
      }
    }
  }
};

}  // namespace block_sparse::cuda::sm90::cells
