// SPDX-License-Identifier: Apache-2.0
//
// A stable counting sort of the stored blocks by column, without atomics: the
// rows are cut into chunks, one for each CTA, and no two blocks of a row share a
// column. So a CTA that takes its rows in turn can count, and later place, all
// blocks of a row at once.
#include <algorithm>

#include "block_sparse/cuda.h"
#include "cuda/common/device.h"

namespace block_sparse::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kScanThreads = 1024;
// About as many chunks as there are multiprocessors; the counts, chunks x
// columns, are scanned by one CTA.
constexpr std::int64_t kMaxChunks = 128;
constexpr std::int64_t kMaxCounts = 1 << 20;

struct Problem {
  const std::int32_t* crow;
  const std::int32_t* col;
  const std::int32_t* ids;
  int rows, cols, slots;
  int chunks, rows_per_chunk;
  // (cols, chunks): blocks of a chunk in a column, after the scan the place of
  // the first of them.
  std::int32_t* counts;
  std::int32_t* ccol;
  std::int32_t* row;
  std::int32_t* t_ids;
};

/// Counts the blocks of each chunk by column or, where they are known, places
/// them. An index that is not valid ends in nonsense, never in a wild access.
template <bool Place>
__global__ void __launch_bounds__(kThreads) walk_chunks(Problem p) {
  const std::int64_t first = std::int64_t(blockIdx.x) * p.rows_per_chunk;
  const std::int64_t last = min(first + p.rows_per_chunk, std::int64_t(p.rows));
  for (std::int64_t row = first; row < last; ++row) {
    const std::int64_t end = min(p.crow[row + 1], p.slots);
    for (std::int64_t i = max(p.crow[row], 0) + std::int64_t(threadIdx.x); i < end; i += kThreads) {
      const int col = p.col[i];
      if (col < 0 || col >= p.cols) continue;
      std::int32_t& count = p.counts[std::int64_t(col) * p.chunks + blockIdx.x];
      const int at = count++;
      if constexpr (Place) {
        if (at < 0 || at >= p.slots) continue;
        p.row[at] = static_cast<std::int32_t>(row);
        p.t_ids[at] = p.ids[i];
      }
    }
    __syncthreads();
  }
}

/// Replaces the counts by their sums before, one CTA; each thread has a run.
__global__ void __launch_bounds__(kScanThreads) scan_counts(Problem p) {
  __shared__ int sums[kScanThreads];
  const std::int64_t total = std::int64_t(p.cols) * p.chunks;
  const std::int64_t run = (total + kScanThreads - 1) / kScanThreads;
  const std::int64_t begin = min(run * threadIdx.x, total);
  const std::int64_t end = min(begin + run, total);
  int own = 0;
  for (std::int64_t i = begin; i < end; ++i) own += p.counts[i];
  sums[threadIdx.x] = own;
  __syncthreads();
  for (unsigned step = 1; step < kScanThreads; step *= 2) {
    const int before = threadIdx.x >= step ? sums[threadIdx.x - step] : 0;
    __syncthreads();
    sums[threadIdx.x] += before;
    __syncthreads();
  }
  int sum = sums[threadIdx.x] - own;
  for (std::int64_t i = begin; i < end; ++i) {
    const int count = p.counts[i];
    p.counts[i] = sum;
    if (i % p.chunks == 0) p.ccol[i / p.chunks] = sum;
    sum += count;
  }
  if (threadIdx.x == kScanThreads - 1) p.ccol[p.cols] = sum;
}

std::int64_t chunks_of(const PatternView& p) {
  const std::int64_t affordable = kMaxCounts / std::max<std::int64_t>(p.n_block_cols(), 1);
  return std::max<std::int64_t>(std::min({p.n_block_rows(), kMaxChunks, affordable}), 1);
}

}  // namespace

std::int64_t transpose_pattern_scratch(const PatternView& p) {
  return chunks_of(p) * p.n_block_cols();
}

Status transpose_pattern(const PatternView& p, std::int32_t* ccol_indices,
                         std::int32_t* row_indices, std::int32_t* t_block_ids,
                         std::int32_t* scratch, Stream stream) {
  Device device;
  if (Status s = current_device(&device); !s.ok()) return s;
  const auto clear = [&](std::int32_t* array, std::int64_t length) {
    if (length == 0) return cudaSuccess;
    return cudaMemsetAsync(array, 0, static_cast<std::size_t>(length) * sizeof(std::int32_t),
                           stream);
  };
  cudaError_t error = clear(scratch, transpose_pattern_scratch(p));
  if (error == cudaSuccess) error = clear(row_indices, p.slots);
  if (error == cudaSuccess) error = clear(t_block_ids, p.slots);
  if (error != cudaSuccess) return to_status(error, "clearing the arrays of a transposition");
  const std::int64_t chunks = chunks_of(p);
  const Problem problem{p.crow_indices,
                        p.col_indices,
                        p.block_ids,
                        static_cast<int>(p.n_block_rows()),
                        static_cast<int>(p.n_block_cols()),
                        static_cast<int>(p.slots),
                        static_cast<int>(chunks),
                        static_cast<int>((p.n_block_rows() + chunks - 1) / chunks),
                        scratch,
                        ccol_indices,
                        row_indices,
                        t_block_ids};
  const auto ctas = static_cast<unsigned>(chunks);
  walk_chunks<false><<<ctas, kThreads, 0, stream>>>(problem);
  scan_counts<<<1, kScanThreads, 0, stream>>>(problem);
  walk_chunks<true><<<ctas, kThreads, 0, stream>>>(problem);
  return to_status(cudaGetLastError(), "launching the transposition of a pattern");
}

}  // namespace block_sparse::cuda
