// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/ptx/wgmma.cuh"
#include "cuda/sm90/cells/setup.cuh"
#include "cuda/sm90/cells/store.cuh"

namespace block_sparse::cuda::sm90::cells {

/// A consumer warpgroup that multiplies 64 rows of cells of 128 x 128, straight from
/// shared memory.
template <class C>
struct WarpgroupMultiplier {
  static constexpr int kStageTokens = 32;
  static constexpr int kBoxBytes = kStageTokens * kBoxFeatures * 2;
  using Mma = ptx::Wgmma<typename C::Element, C::kWidth>;

  const Params& p;
  Shared<C>& shared;
  const int consumer = static_cast<int>(threadIdx.x) / 128 - 1;
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  Place at{};

  /// The sums of `Count` cells. ptxas serialises wgmmas that lie behind a branch of
  /// their own, so the count is a template argument.
  template <int Count>
  __device__ __forceinline__ void sum(const Task& task) {
    float d[Count][C::kWidth / 2];
    unsigned dy[Count], x[Count];
#pragma unroll
    for (int j = 0; j < Count; ++j) {
#pragma unroll
      for (float& v : d[j]) v = 0;
      dy[j] = __shfl_sync(~0u, shared.operands[0][j].dy, 0) + consumer * (kBoxBytes / 16);
      x[j] = __shfl_sync(~0u, shared.operands[0][j].x, 0);
    }
    const auto fence = [&] {
#pragma unroll
      for (int j = 0; j < Count; ++j) ptx::wgmma_fence(d[j]);
    };
    int in_flight = -1;
    for (int s = 0; s < task.stages; ++s) {
      const int stage = at.stage;
      ptx::barrier_wait(&shared.full[stage], at.parity());
      at.advance(task.ring_stages);
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
        const int tokens = step * (16 * 128 / 16);
#pragma unroll
        for (int j = 0; j < Count; ++j) {
          Mma::template shared<true, true>(d[j], operand(dy[j] + tokens), operand(x[j] + tokens));
        }
      }
      ptx::wgmma_commit();
      fence();
      ptx::wgmma_wait<1>();
      if (in_flight >= 0) release_stage<C>(&shared.empty[in_flight]);
      in_flight = stage;
    }
    ptx::wgmma_wait<0>();
    fence();
    if (in_flight >= 0) release_stage<C>(&shared.empty[in_flight]);
    constexpr int kQuads = C::kWidth / 8;  // of a cell
    SumStore<C>{p, shared, shared.targets[0]}.run(
        reinterpret_cast<const float (&)[Count * 4 * kQuads]>(d), Count * kQuads, [&](int q) {
          return Quad{q / kQuads, consumer * 64 + warp * 16 + lane / 4,
                      q % kQuads * 8 + lane % 4 * 2};
        });
  }

  /// Stages that the other CTA of the cluster needs.
  __device__ __forceinline__ void skip(const Task& task) {
    for (int s = 0; s < task.stages; ++s) {
      const int stage = at.stage;
      ptx::barrier_wait(&shared.full[stage], at.parity());
      at.advance(task.ring_stages);
      release_stage<C>(&shared.empty[stage]);
    }
  }

  __device__ __forceinline__ void run(const Task& task) {
    at.stage = 0;
    switch (__shfl_sync(~0u, task.count, 0)) {
      case 0:
        skip(task);
        break;
      case 1:
        sum<1>(task);
        break;
      case 2:
        sum<2>(task);
        break;
      default:
        sum<3>(task);
    }
    static_assert(C::kOwned == 3);
  }
};

}  // namespace block_sparse::cuda::sm90::cells
