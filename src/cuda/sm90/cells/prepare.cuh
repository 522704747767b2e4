// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/ptx/launch.cuh"
#include "cuda/sm90/cells/plane.h"

namespace block_sparse::cuda::sm90::cells {

constexpr int kPrepareThreads = 1024;  // loads of many rows of blocks at once

/// Slots that nothing is stored in are cleared here.
struct SpareSlots {
  void* dvalues;
  std::int64_t slots;
  std::int64_t block_bytes;    // a multiple of 16
  const std::int32_t* stored;  // their number
};

/// Calls `f(flat)` with the place of each stored cell of the unit in its order,
/// and the cell. A warp reads a row of blocks.
template <class F>
__device__ __forceinline__ void for_each_cell(const Plane& p, const Unit& unit, int line_bits,
                                              F&& f) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int r = static_cast<int>(threadIdx.x) / 32; r < unit.rows; r += kPrepareThreads / 32) {
    const int line = (unit.row0 + r) / p.down;
    const int end = p.crow[line + 1];
    for (int i = p.crow[line] + lane; i < end; i += 32) {
      const int first = p.block_cols[i] * p.across - unit.column0;
      for (int c = max(first, 0); c < min(first + p.across, unit.columns); ++c) {
        f(p.by_row ? r * line_bits + c : c * line_bits + r, Cell{r | c << 16, p.block_ids[i]});
      }
    }
  }
}

/// A CTA per unit: lists its cells in order from `cells[unit.base]` on, and
/// their number. A bit per place makes the order independent of the threads'.
static __global__ void __launch_bounds__(kPrepareThreads)
    prepare_kernel(const Plane p, SpareSlots spare, Cell* cells, int* counts) {
  __shared__ unsigned stored[kMaxUnitCells / 32];
  __shared__ int before[kMaxUnitCells / 32];  // cells of the words before
  __shared__ int warp_sums[kPrepareThreads / 32];
  ptx::allow_next_kernel();
  const int t = static_cast<int>(threadIdx.x);
  const int lane = t % 32;
  const Unit unit = unit_of(p, static_cast<int>(blockIdx.x));
  // Paired: a thread counts a line, which begins with a word.
  const int line = p.by_row ? unit.columns : unit.rows;
  const int line_bits = p.pairs ? ceil_div(line, 32) * 32 : line;
  const int words = ceil_div(line_bits * (p.by_row ? unit.rows : unit.columns), 32);
  for (int w = t; w < words; w += kPrepareThreads) stored[w] = 0;
  __syncthreads();
  for_each_cell(p, unit, line_bits,
                [&](int flat, const Cell&) { atomicOr(&stored[flat / 32], 1u << flat % 32); });
  __syncthreads();

  const int a_thread = p.pairs ? line_bits / 32 : ceil_div(words, kPrepareThreads);
  const int first = min(t * a_thread, words);
  const int last = min(first + a_thread, words);
  int mine = 0;
  for (int w = first; w < last; ++w) mine += __popc(stored[w]);
  const bool hole = p.pairs && mine % 2 != 0;
  mine += hole;
  int sum = mine;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const int below = __shfl_up_sync(~0u, sum, d);
    if (lane >= d) sum += below;
  }
  if (lane == 31) warp_sums[t / 32] = sum;
  __syncthreads();
  int passed = sum - mine;
  for (int w = 0; w < t / 32; ++w) passed += warp_sums[w];
  for (int w = first; w < last; ++w) {
    before[w] = passed;
    passed += __popc(stored[w]);
  }
  if (hole) cells[unit.base + passed++] = {0, -1};
  if (t == kPrepareThreads - 1) counts[blockIdx.x] = passed;
  __syncthreads();

  for_each_cell(p, unit, line_bits, [&](int flat, const Cell& cell) {
    const unsigned below = stored[flat / 32] & ((1u << flat % 32) - 1);
    cells[unit.base + before[flat / 32] + __popc(below)] = cell;
  });
  if (spare.dvalues == nullptr) return;
  for (std::int64_t i = *spare.stored + blockIdx.x; i < spare.slots; i += gridDim.x) {
    auto* block = reinterpret_cast<uint4*>(static_cast<char*>(spare.dvalues) +
                                           p.block_ids[i] * spare.block_bytes);
    for (std::int64_t e = t; e < spare.block_bytes / 16; e += kPrepareThreads) {
      block[e] = uint4{0, 0, 0, 0};
    }
  }
}

}  // namespace block_sparse::cuda::sm90::cells
