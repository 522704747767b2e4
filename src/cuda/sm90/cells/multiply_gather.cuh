// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/ptx/wgmma.cuh"
#include "cuda/sm90/cells/setup.cuh"
#include "cuda/sm90/cells/store.cuh"

namespace block_sparse::cuda::sm90::cells {

/// A consumer warpgroup that multiplies cells of 64 x 64 one by one, or pairs of cells: of
/// 32 x 32 with the same column, of 64 x 64 with the same row. What differs, 64 rows of dy
/// or 128 columns of x, is gathered by a product's descriptor.
template <class C>
struct GatherMultiplier {
  static constexpr int kCells = C::kTogether;  // of a product
  static constexpr int kColumns = C::kByRow ? 2 * C::kWidth : C::kWidth;
  static constexpr int kSums = kColumns / 2;
  using Mma = ptx::Wgmma<typename C::Element, kColumns>;
  static constexpr int kRowBytes = C::kBox * 2;
  static constexpr int kProducts = Shared<C>::kProducts;
  static constexpr int kGroup = kProducts / 3;  // products between reads of descriptors
  static_assert(kProducts % kGroup == 0);

  const Params& p;
  Shared<C>& shared;
  const int worker = static_cast<int>(threadIdx.x) / 128 - 1;
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  Place at{};
  float d[kProducts][kSums];

  __device__ __forceinline__ void fence() {
#pragma unroll
    for (int j = 0; j < kProducts; ++j) ptx::wgmma_fence(d[j]);
  }

  /// Sums `Groups` groups of products over the stages; what fills up the last one
  /// is not stored. The count is a template argument, as ptxas serialises wgmmas
  /// that lie behind a branch of their own.
  template <int Groups>
  __device__ __forceinline__ void sum(const Task& task) {
    const int steps = p.rounds.stage_tokens / 16;
    int in_flight = -1;
    for (int s = 0; s < task.stages; ++s) {
      const int stage = at.stage;
      ptx::barrier_wait(&shared.full[stage], at.parity());
      at.advance(task.ring_stages);
      if constexpr (Groups == 0) {
        release_stage<C>(&shared.empty[stage]);
        continue;
      }
      // Descriptors differ in their low words.
      std::uint64_t base =
          ptx::operand<kRowBytes>(ptx::shared_address(shared.ring) + stage * task.stage_bytes, 0);
      for (int step = 0; step < steps; ++step, base += kRowBytes) {
        const auto operand = [&](std::uint32_t offset) {
          return (base >> 32 << 32) | (static_cast<std::uint32_t>(base) + offset);
        };
        PairOperands of[Groups == 0 ? 1 : Groups * kGroup];
#pragma unroll
        for (int j = 0; j < Groups * kGroup; ++j) of[j] = shared.operands[worker][j];
        fence();
        ptx::wgmma_begin();
#pragma unroll
        for (int j = 0; j < Groups * kGroup; ++j) {
          Mma::template shared<true, true>(d[j], operand(of[j].dy), operand(of[j].x));
        }
        ptx::wgmma_commit();
        fence();
        ptx::wgmma_wait<1>();
        // Only this step's products still run.
        if (step == 0 && in_flight >= 0) release_stage<C>(&shared.empty[in_flight]);
      }
      in_flight = stage;
    }
    ptx::wgmma_wait<0>();
    fence();
    if (in_flight >= 0) release_stage<C>(&shared.empty[in_flight]);
  }

  __device__ __forceinline__ void run(const Task& task) {
#pragma unroll
    for (int j = 0; j < kProducts; ++j) {
#pragma unroll
      for (float& v : d[j]) v = 0;
    }
    at.stage = 0;
    const int count = __shfl_sync(~0u, cells_of<C>(task, worker) / kCells, 0);
    switch (ceil_div(count, kGroup)) {
      case 0:
        sum<0>(task);
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
    static_assert(kProducts / kGroup == 3);
    constexpr int kQuads = kSums / 4;  // of a product
    SumStore<C>{p, shared, shared.targets[worker]}.run(
        reinterpret_cast<const float (&)[kProducts * kSums]>(d), count * kQuads, [&](int q) {
          const int row = warp * 16 + lane / 4;
          const int column = q % kQuads * 8;
          const int cell = kCells * (q / kQuads) + row / C::kHeight + column / C::kWidth;
          return Quad{cell, row % C::kHeight, column % C::kWidth + lane % 4 * 2};
        });
  }
};

}  // namespace block_sparse::cuda::sm90::cells
