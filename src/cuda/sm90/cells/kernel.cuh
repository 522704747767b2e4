// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/ptx/launch.cuh"
#include "cuda/sm90/cells/load.cuh"
#include "cuda/sm90/cells/multiply_pair.cuh"
#include "cuda/sm90/cells/multiply_warp.cuh"
#include "cuda/sm90/cells/multiply_warpgroup.cuh"

namespace block_sparse::cuda::sm90::cells {

template <class C>
__device__ void multiply_loop(const Params& p, Shared<C>& shared) {
  using Multiplier = std::conditional_t<
      C::kPaired, PairMultiplier<C>,
      std::conditional_t<C::kWorkers == 1, WarpgroupMultiplier<C>, WarpMultiplier<C>>>;
  Multiplier multiplier{p, shared};
  Task task;
  for (int item = blockIdx.x / C::kCluster; set_up<C>(p, shared, item, &task);
       item += gridDim.x / C::kCluster) {
    multiplier.run(task);
  }
}

/// dvalues = dyᵀ x on the stored blocks: a warpgroup that loads and two that
/// multiply, persistent over pieces of the plane.
template <class C>
__global__ void __cluster_dims__(C::kCluster, 1, 1) __launch_bounds__(kThreads, 1)
    kernel(const Params p, const __grid_constant__ CUtensorMap dy_map,
           const __grid_constant__ CUtensorMap x_map) {
  extern __shared__ unsigned char raw[];
  auto& shared =
      *reinterpret_cast<Shared<C>*>(raw + (1024 - ptx::shared_address(raw) % 1024) % 1024);
  if (threadIdx.x == 0) {
    for (int s = 0; s < kMaxStages; ++s) {
      ptx::barrier_init(&shared.full[s], 1);
      ptx::barrier_init(&shared.empty[s], C::kCluster * kConsumers * 4);
    }
    ptx::fence_barrier_init();
  }
  ptx::cluster_sync();
  ptx::allow_next_kernel();
  ptx::wait_for_kernels_before();
  if (threadIdx.x < 128) {
    ptx::registers_decrease<kProducerRegisters>();
    load_loop<C>(p, &dy_map, &x_map, shared);
  } else {
    ptx::registers_increase<kConsumerRegisters>();
    multiply_loop<C>(p, shared);
  }
  // A CTA's peer may still arrive at its barriers.
  __syncwarp();
  ptx::cluster_sync();
}

constexpr int kFinishThreads = 256;
constexpr int kFinishCtas = 16;  // a piece

/// Adds up the parts of the pieces that were split, in order.
template <class C>
__global__ void __launch_bounds__(kFinishThreads) finish_kernel(const Params p) {
  __shared__ Piece piece;
  __shared__ PieceCount n;
  const int tail = static_cast<int>(blockIdx.x) / kFinishCtas;
  ptx::wait_for_kernels_before();
  if (threadIdx.x < 32) {
    int upto;
    const PieceCount count = count_pieces(p.plane, p.rounds, p.counts, &upto);
    Piece found{};
    if (tail < count.tail && count.splits > 1) {
      locate_piece(p.plane, p.rounds, p.counts, upto, count.whole + tail, &found);
    }
    if (threadIdx.x == 0) {
      n = count;
      piece = found;
    }
  }
  __syncthreads();
  if (tail >= n.tail || n.splits == 1) return;
  constexpr int kPairs = C::kHeight * C::kWidth / 2;
  const Unit unit = unit_of(p.plane, piece.unit);
  const auto* slab = reinterpret_cast<const float2*>(p.slabs) +
                     std::int64_t(tail) * n.splits * C::kPieceCells * kPairs;
  const int part = static_cast<int>(blockIdx.x) % kFinishCtas;
  for (int e = part * kFinishThreads + static_cast<int>(threadIdx.x); e < piece.count * kPairs;
       e += kFinishCtas * kFinishThreads) {
    float2 sum = make_float2(0, 0);
#pragma unroll 4
    for (int s = 0; s < n.splits; ++s) {
      const float2 v = slab[std::int64_t(s) * C::kPieceCells * kPairs + e];
      sum.x += v.x;
      sum.y += v.y;
    }
    const Cell cell = p.cells[piece.first + e / kPairs];
    if (cell.slot < 0) continue;
    const int row =
        (unit.row0 + cell.row()) % p.plane.down * C::kHeight + e % kPairs * 2 / C::kWidth;
    const int column =
        (unit.column0 + cell.column()) % p.plane.across * C::kWidth + e % kPairs * 2 % C::kWidth;
    p.output.template store<typename C::Element>(cell.slot, row * p.block_width + column, sum.x,
                                                 sum.y);
  }
}

}  // namespace block_sparse::cuda::sm90::cells
