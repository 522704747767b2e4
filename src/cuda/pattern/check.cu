// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "block_sparse/cuda.h"
#include "cuda/common/device.h"

namespace block_sparse::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;

struct Arrays {
  const std::int32_t* crow;
  const std::int32_t* col;
  const std::int32_t* ids;
  int rows, cols, slots;
};

/// A warp looks at one block row after another. `taken` has a bit for each
/// slot. Where pointers are wrong, what they enclose is cut down to the slots.
__global__ void __launch_bounds__(kThreads)
    check_rows(Arrays a, std::int32_t* fault, unsigned* taken) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t warps = std::int64_t(gridDim.x) * kWarps;
  bool wrong = a.crow[0] != 0;
  for (std::int64_t row = (std::int64_t(blockIdx.x) * kThreads + threadIdx.x) / 32; row < a.rows;
       row += warps) {
    const int begin = a.crow[row];
    const int end = a.crow[row + 1];
    wrong |= begin > end || end > a.slots;
    const std::int64_t first = max(begin, 0);
    const std::int64_t last = min(end, a.slots);
    for (std::int64_t i = first + lane; i < last; i += 32) {
      const int col = a.col[i];
      wrong |= col < 0 || col >= a.cols || (i > first && a.col[i - 1] >= col);
      const int slot = a.ids[i];
      if (slot < 0 || slot >= a.slots) {
        wrong = true;
      } else {
        const unsigned bit = 1u << slot % 32;
        wrong |= (atomicOr(taken + slot / 32, bit) & bit) != 0;
      }
    }
  }
  if (wrong) *fault = 1;  // by many threads, the same
}

}  // namespace

std::int64_t check_pattern_scratch(const PatternView& p) { return 1 + (p.slots + 31) / 32; }

Status check_pattern(const PatternView& p, std::int32_t* scratch, Stream stream) {
  Device device;
  if (Status s = current_device(&device); !s.ok()) return s;
  const std::size_t bytes =
      static_cast<std::size_t>(check_pattern_scratch(p)) * sizeof(std::int32_t);
  if (Status s =
          to_status(cudaMemsetAsync(scratch, 0, bytes, stream), "clearing the memory of a check");
      !s.ok()) {
    return s;
  }
  const std::int64_t rows = p.n_block_rows();
  // Eight CTAs a multiprocessor hide the latency of the loads.
  const std::int64_t ctas = std::clamp<std::int64_t>((rows + kWarps - 1) / kWarps, 1,
                                                     std::int64_t{8} * device.multiprocessors);
  check_rows<<<static_cast<unsigned>(ctas), kThreads, 0, stream>>>(
      {p.crow_indices, p.col_indices, p.block_ids, static_cast<int>(rows),
       static_cast<int>(p.n_block_cols()), static_cast<int>(p.slots)},
      scratch, reinterpret_cast<unsigned*>(scratch + 1));
  return to_status(cudaGetLastError(), "launching the check of a pattern");
}

}  // namespace block_sparse::cuda
