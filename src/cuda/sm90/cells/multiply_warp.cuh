// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/ptx/matrix.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/sm90/cells/setup.cuh"
#include "cuda/sm90/cells/store.cuh"

namespace block_sparse::cuda::sm90::cells {

/// A consumer warp that multiplies cells of sides 16 and 32 by mma.sync. Operands
/// are read for each cell, some cells ahead: a test whether its neighbour has the
/// same costs more than reading them again.
template <class C>
struct WarpMultiplier {
  using Element = typename C::Element;
  static constexpr int kTilesM = C::kHeight / 16;
  static constexpr int kTilesN = C::kWidth / 8;
  /// Cells whose operands are in registers, worked on as a group.
  static constexpr int kAhead = C::kHeight * C::kWidth >= 512 ? 2 : 4;
  static constexpr int kGroups = C::kOwned / kAhead;
  static_assert(C::kOwned % kAhead == 0);

  const Params& p;
  Shared<C>& shared;
  const int worker = static_cast<int>(threadIdx.x) / 32 - 4;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  Place at{};
  float d[C::kOwned][kTilesM][kTilesN][4];
  std::uint32_t a[kAhead][kTilesM][4];
  std::uint32_t b[kAhead][kTilesN / 2][4];
  std::uint32_t dy[C::kOwned], x[C::kOwned];  // where this lane reads, from the first token on

  // Rows of shared memory are tokens, so all matrices are read transposed: of dy
  // (rows low, high) x (tokens low, high), of x (tokens low, high) x (columns low,
  // high). Units of 16 bytes are XORed with the row; cells begin at even units,
  // those 32 wide at multiples of four.
  __device__ __forceinline__ void find_operands() {
    const std::uint32_t at_dy =
        (lane % 8 + lane / 16 * 8) * 128 | ((lane / 8 % 2) ^ (lane % 8)) * 16;
    const std::uint32_t at_x = (lane % 16) * 128 | ((lane / 16) ^ (lane % 8)) * 16;
#pragma unroll
    for (int j = 0; j < C::kOwned; ++j) {
      const Operands of = shared.operands[worker][j];
      dy[j] = of.dy * 16u ^ at_dy;
      x[j] = of.x * 16u ^ at_x;
    }
  }
  __device__ __forceinline__ void load(int buffer, std::uint32_t at_dy, std::uint32_t at_x) {
#pragma unroll
    for (int m = 0; m < kTilesM; ++m) {
      ptx::load_matrix_x4_transposed(a[buffer][m], at_dy ^ m * 32);
    }
#pragma unroll
    for (int n = 0; n < kTilesN / 2; ++n) {
      ptx::load_matrix_x4_transposed(b[buffer][n], at_x ^ n * 32);
    }
  }

  /// The products of the 16 tokens at `tokens` in shared memory. The operands of the
  /// first group are in registers; those for the 16 at `next` will be.
  __device__ __forceinline__ void step(std::uint32_t tokens, std::uint32_t next, int groups) {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      if (g >= groups) break;
      const bool last = g == kGroups - 1 || g == groups - 1;
#pragma unroll
      for (int q = 0; q < kAhead; ++q) {
        const int j = g * kAhead + q;
#pragma unroll
        for (int n = 0; n < kTilesN; ++n) {
#pragma unroll
          for (int m = 0; m < kTilesM; ++m) {
            ptx::mma_16x8x16<Element>(d[j][m][n], a[q][m], b[q][n / 2][n % 2 * 2],
                                      b[q][n / 2][n % 2 * 2 + 1]);
          }
        }
        const int then = (j + kAhead) % C::kOwned;
        load(q, last ? next + dy[q] : tokens + dy[then], last ? next + x[q] : tokens + x[then]);
      }
    }
  }

  __device__ __forceinline__ void wait(int stage) const {
    ptx::barrier_wait(&shared.full[stage], at.parities >> stage & 1);
  }

  __device__ __forceinline__ void run(const Task& task) {
#pragma unroll
    for (int i = 0; i < C::kOwned * kTilesM * kTilesN * 4; ++i) (&d[0][0][0][0])[i] = 0;
    const int count = cells_of<C>(task, worker);
    const int groups = ceil_div(count, kAhead);
    find_operands();
    const std::uint32_t ring = ptx::shared_address(shared.ring);
    const int steps = p.rounds.stage_tokens / 16;
    at.stage = 0;
    if (task.stages > 0) wait(0);
#pragma unroll
    for (int q = 0; q < kAhead; ++q) load(q, ring + dy[q], ring + x[q]);
    std::uint32_t tokens = ring;
    for (int s = 0, i = 0; s < task.stages;) {
      const int stage = at.stage;
      const bool ends = ++i == steps;
      std::uint32_t next = tokens + 16 * 128;
      if (ends) {
        i = 0;
        ++s;
        at.advance(task.ring_stages);
        next = ring + at.stage * task.stage_bytes;
        if (s < task.stages) wait(at.stage);
      }
      step(tokens, next, groups);
      tokens = next;
      if (!ends) continue;
      __syncwarp();
      release_stage<C>(&shared.empty[stage]);
    }
    const CellStore<C> store{p, task, shared.targets[worker]};
#pragma unroll
    for (int j = 0; j < C::kOwned; ++j) {
      if (j >= count) continue;
#pragma unroll
      for (int m = 0; m < kTilesM; ++m) {
#pragma unroll
        for (int n = 0; n < kTilesN; ++n) {
          const float (&v)[4] = d[j][m][n];
          const int row = m * 16 + lane / 4;
          const int column = n * 8 + lane % 4 * 2;
          store(j, row, column, v[0], v[1]);
          store(j, row + 8, column, v[2], v[3]);
        }
      }
    }
  }
};

}  // namespace block_sparse::cuda::sm90::cells
