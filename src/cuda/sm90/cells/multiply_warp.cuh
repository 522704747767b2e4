// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/ptx/matrix.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/sm90/cells/setup.cuh"
#include "cuda/sm90/cells/store.cuh"

namespace block_sparse::cuda::sm90::cells {

/// A consumer warp that multiplies cells with a side of 16 by mma.sync. Operands are read
/// for each cell, some cells ahead, but x only once for those of a column that are
/// together: a test whether its neighbour has the same costs more than reading it again.
template <class C>
struct WarpMultiplier {
  using Element = typename C::Element;
  static constexpr int kTilesM = C::kHeight / 16;
  static constexpr int kTilesN = C::kWidth / 8;
  static constexpr int kTogether = C::kTogether;
  /// Cells whose operands are in registers, worked on as a group.
  static constexpr int kAhead = C::kHeight * C::kWidth >= 512 ? 2 : 4;
  static constexpr int kGroups = C::kOwned / kAhead;
  static constexpr int kLines = kAhead / kTogether;  // columns of x in a group
  static_assert(C::kOwned % kAhead == 0 && kAhead % kTogether == 0);

  const Params& p;
  Shared<C>& shared;
  const int worker = static_cast<int>(threadIdx.x) / 32 - 4;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  Place at{};
  float d[C::kOwned][kTilesM][kTilesN][4];
  std::uint32_t a[kAhead][kTilesM][4];
  std::uint32_t b[kLines][kTilesN / 2][4];
  // Where this lane reads, from the first token on.
  std::uint32_t dy[C::kOwned], x[C::kOwned / kTogether];

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
      if (j % kTogether == 0) x[j / kTogether] = of.x * 16u ^ at_x;
    }
  }
  __device__ __forceinline__ void load_dy(int q, std::uint32_t at) {
#pragma unroll
    for (int m = 0; m < kTilesM; ++m) ptx::load_matrix_x4_transposed(a[q][m], at ^ m * 32);
  }
  __device__ __forceinline__ static void load_x(std::uint32_t (&to)[kTilesN / 2][4],
                                                std::uint32_t at) {
#pragma unroll
    for (int n = 0; n < kTilesN / 2; ++n) ptx::load_matrix_x4_transposed(to[n], at ^ n * 32);
  }

  /// The products of the 16 tokens at `tokens` in shared memory. The operands of the
  /// first group are in registers; those for the 16 at `next` will be.
  __device__ __forceinline__ void step(std::uint32_t tokens, std::uint32_t next, int groups) {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      if (g >= groups) break;
      const bool last = g == kGroups - 1 || g == groups - 1;
      const int then = (g + 1) % kGroups;
      // x of the next group, as all of this group need theirs.
      std::uint32_t next_b[kLines][kTilesN / 2][4];
      if constexpr (kTogether > 1) {
#pragma unroll
        for (int l = 0; l < kLines; ++l) {
          load_x(next_b[l], last ? next + x[l] : tokens + x[then * kLines + l]);
        }
      }
#pragma unroll
      for (int q = 0; q < kAhead; ++q) {
        const int j = g * kAhead + q;
        const auto& of_x = b[q / kTogether];
#pragma unroll
        for (int n = 0; n < kTilesN; ++n) {
#pragma unroll
          for (int m = 0; m < kTilesM; ++m) {
            ptx::mma_16x8x16<Element>(d[j][m][n], a[q][m], of_x[n / 2][n % 2 * 2],
                                      of_x[n / 2][n % 2 * 2 + 1]);
          }
        }
        load_dy(q, last ? next + dy[q] : tokens + dy[then * kAhead + q]);
        if constexpr (kTogether == 1) {
          load_x(b[q], last ? next + x[q] : tokens + x[then * kAhead + q]);
        }
      }
      if constexpr (kTogether > 1) {
#pragma unroll
        for (int i = 0; i < kLines * (kTilesN / 2) * 4; ++i) {
          (&b[0][0][0])[i] = (&next_b[0][0][0])[i];
        }
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
    for (int q = 0; q < kAhead; ++q) load_dy(q, ring + dy[q]);
#pragma unroll
    for (int l = 0; l < kLines; ++l) load_x(b[l], ring + x[l]);
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
    constexpr int kQuads = kTilesM * kTilesN;  // of a cell
    SumStore<C>{p, shared, shared.targets[worker]}.run(
        reinterpret_cast<const float (&)[C::kOwned * kQuads * 4]>(d), count * kQuads, [&](int q) {
          return Quad{q / kQuads, q / kTilesN % kTilesM * 16 + lane / 4,
                      q % kTilesN * 8 + lane % 4 * 2};
        });
  }
};

}  // namespace block_sparse::cuda::sm90::cells
