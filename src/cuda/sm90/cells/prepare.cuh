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

/// The rows of blocks that a unit touches, and where each begins in the index.
struct UnitLines {
  static constexpr int kMax = kMaxPanels * (kBoxFeatures / 16) + 1;
  int starts[kMax + 1];
};

/// Calls `f(flat, cell)` with the place of each stored cell of the unit in its
/// order.
template <class F>
__device__ __forceinline__ void for_each_cell(const Plane& p, const Unit& unit,
                                              const UnitLines& lines, int line_bits, F&& f) {
  constexpr int kAtOnce = 4;  // reads under way
  const int line0 = unit.row0 / p.down;
  const int count = ceil_div(unit.row0 + unit.rows, p.down) - line0;
  const int end = lines.starts[count];
  for (int base = lines.starts[0] + static_cast<int>(threadIdx.x); base < end;
       base += kAtOnce * kPrepareThreads) {
    int columns[kAtOnce];
    int slots[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int i = min(base + k * kPrepareThreads, end - 1);
      columns[k] = p.block_cols[i];
      slots[k] = p.block_ids[i];
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int i = base + k * kPrepareThreads;
      const int column = columns[k] * p.across - unit.column0;
      if (i >= end || column + p.across <= 0 || column >= unit.columns) continue;
      int line = 0;  // the last that begins at i or before
      for (int step = 1 << 10; step > 0; step /= 2) {
        if (line + step < count && lines.starts[line + step] <= i) line += step;
      }
      const int row = (line0 + line) * p.down - unit.row0;
      for (int r = max(row, 0); r < min(row + p.down, unit.rows); ++r) {
        for (int c = max(column, 0); c < min(column + p.across, unit.columns); ++c) {
          f(p.by_row ? r * line_bits + c : c * line_bits + r, Cell{r | c << 16, slots[k]});
        }
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
  __shared__ UnitLines lines;
  ptx::allow_next_kernel();
  const int t = static_cast<int>(threadIdx.x);
  const int lane = t % 32;
  const Unit unit = unit_of(p, static_cast<int>(blockIdx.x));
  // Filled up: a thread counts a line, which begins with a word.
  const int line = p.by_row ? unit.columns : unit.rows;
  const int line_bits = p.together > 1 ? ceil_div(line, 32) * 32 : line;
  const int words = ceil_div(line_bits * (p.by_row ? unit.rows : unit.columns), 32);
  for (int w = t; w < words; w += kPrepareThreads) stored[w] = 0;
  const std::int64_t first_spare = spare.dvalues == nullptr ? spare.slots : *spare.stored;
  const int line0 = unit.row0 / p.down;
  for (int l = t; l <= ceil_div(unit.row0 + unit.rows, p.down) - line0; l += kPrepareThreads) {
    lines.starts[l] = p.crow[line0 + l];
  }
  __syncthreads();
  for_each_cell(p, unit, lines, line_bits,
                [&](int flat, const Cell&) { atomicOr(&stored[flat / 32], 1u << flat % 32); });
  __syncthreads();

  const int a_thread = p.together > 1 ? line_bits / 32 : ceil_div(words, kPrepareThreads);
  const int first = min(t * a_thread, words);
  const int last = min(first + a_thread, words);
  int mine = 0;
  for (int w = first; w < last; ++w) mine += __popc(stored[w]);
  const int holes = ceil_div(mine, p.together) * p.together - mine;
  mine += holes;
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
  for (int h = 0; h < holes; ++h) cells[unit.base + passed++] = {0, -1};
  if (t == kPrepareThreads - 1) counts[blockIdx.x] = passed;
  __syncthreads();

  for_each_cell(p, unit, lines, line_bits, [&](int flat, const Cell& cell) {
    const unsigned below = stored[flat / 32] & ((1u << flat % 32) - 1);
    cells[unit.base + before[flat / 32] + __popc(below)] = cell;
  });
  for (std::int64_t i = first_spare + blockIdx.x; i < spare.slots; i += gridDim.x) {
    auto* block = reinterpret_cast<uint4*>(static_cast<char*>(spare.dvalues) +
                                           p.block_ids[i] * spare.block_bytes);
    for (std::int64_t e = t; e < spare.block_bytes / 16; e += kPrepareThreads) {
      block[e] = uint4{0, 0, 0, 0};
    }
  }
}

}  // namespace block_sparse::cuda::sm90::cells
