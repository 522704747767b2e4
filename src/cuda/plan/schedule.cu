// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "cuda/common/device.h"
#include "cuda/plan.h"
#include "cuda/plan/cost.cuh"
#include "cuda/plan/fill.h"

namespace block_sparse::cuda::plan {
namespace {

constexpr int kThreads = 1024;

/// Blocks of the lines of the tiles `first` and `first + 1`, and how many positions
/// they take up; by a whole warp.
struct PairSize {
  unsigned positions, blocks;
};
__device__ PairSize pair_size(const std::int32_t* pointers, const std::int32_t* others,
                              const int (&lines)[2]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int begin = pointers[lines[0]], end = pointers[lines[0] + 1];
  const auto first = static_cast<unsigned>(end - begin);
  if (lines[1] == lines[0]) return {first, 2 * first};
  if (lines[1] < 0) return {first, first};
  const int from = pointers[lines[1]], to = pointers[lines[1] + 1];
  unsigned alone = 0;  // positions that only the second line has
  for (int i = from + lane; i < to; i += 32) {
    const int position = others[i];
    int low = begin, high = end;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (others[middle] < position) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    alone += low == end || others[low] != position;
  }
  return {first + __reduce_add_sync(~0u, alone), first + static_cast<unsigned>(to - from)};
}

/// Deals the pairs of tiles to clusters, each to the one that is free first; one CTA.
/// The token tiles come in rounds of `in_flight`, or of two where the last would be
/// alone, and in a round the heaviest pairs first.
__global__ void __launch_bounds__(kThreads)
    schedule_pairs(const std::int32_t* pointers, const std::int32_t* others,
                   const std::int32_t* order, int segments, int a_line, int boxes_a_block,
                   int in_flight, int clusters, int levels, std::int32_t* table) {
  extern __shared__ unsigned costs[];  // of the pairs
  const int pairs = (segments + 1) / 2;
  auto* cluster_of = reinterpret_cast<unsigned char*>(costs + pairs);  // of all items, by level
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int pair = warp; pair < pairs; pair += kThreads / 32) {
    const bool second = 2 * pair + 1 < segments;
    const int lines[2] = {order[2 * pair / a_line], second ? order[(2 * pair + 1) / a_line] : -1};
    const PairSize size = pair_size(pointers, others, lines);
    if (lane == 0)
      costs[pair] = cost_of(size.positions * boxes_a_block, size.blocks * boxes_a_block);
  }
  __syncthreads();
  const int last = max(in_flight, 2);
  if (warp < levels) {
    const int tiles = 1 << warp;
    unsigned char* mine = cluster_of + pairs * (tiles - 1);
    unsigned busy[Schedule::kMaxClusters / 32];  // of clusters lane, lane + 32, ...
#pragma unroll
    for (int i = 0; i < Schedule::kMaxClusters / 32; ++i) {
      busy[i] = lane + i * 32 < clusters ? 0 : ~0u >> 7;
    }
    for (int first = 0; first < tiles;) {
      const int width = tiles - first - in_flight >= last ? in_flight : tiles - first;
      for (int pair = 0; pair < pairs; ++pair) {
        const unsigned cost = costs[pair];
        for (int tile = first; tile < first + width; ++tile) {
          unsigned best = ~0u;
#pragma unroll
          for (int i = 0; i < Schedule::kMaxClusters / 32; ++i) {
            best = min(best, busy[i] << 7 | static_cast<unsigned>(lane + i * 32));
          }
          best = __reduce_min_sync(~0u, best) & 127;
#pragma unroll
          for (int i = 0; i < Schedule::kMaxClusters / 32; ++i) {
            if (best == static_cast<unsigned>(lane + i * 32))
              busy[i] = min(busy[i] + cost, ~0u >> 7);
          }
          if (lane == 0) mine[pair * tiles + tile] = static_cast<unsigned char>(best);
        }
      }
      first += width;
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) table[0] = clusters;
  // One thread a cluster and level gathers its items: first how many, then which.
  for (int level = 0; level < levels; ++level) {
    const int tiles = 1 << level;
    const unsigned char* of = cluster_of + pairs * (tiles - 1);
    __shared__ int begin[Schedule::kMaxClusters + 1];
    const int cluster = static_cast<int>(threadIdx.x);
    int count = 0;
    if (cluster < clusters) {
      for (int i = 0; i < pairs * tiles; ++i) count += of[i] == cluster;
      begin[cluster] = count;
    }
    __syncthreads();
    if (cluster == 0) {
      int sum = Schedule::items(levels, pairs, level);
      for (int c = 0; c < clusters; ++c) {
        const int size = begin[c];
        begin[c] = sum;
        sum += size;
      }
      begin[clusters] = sum;
    }
    __syncthreads();
    if (cluster <= clusters) table[Schedule::offsets(level) + cluster] = begin[cluster];
    if (cluster < clusters) {
      int at = begin[cluster];
      for (int first = 0; first < tiles;) {
        const int width = tiles - first - in_flight >= last ? in_flight : tiles - first;
        for (int pair = 0; pair < pairs; ++pair) {
          for (int tile = first; tile < first + width; ++tile) {
            if (of[pair * tiles + tile] == cluster) table[at++] = Schedule::item(pair, tile);
          }
        }
        first += width;
      }
    }
    __syncthreads();
  }
}

}  // namespace

Status fill_schedule(const LineIndex& index, const std::int32_t* order, std::int32_t* table,
                     Stream stream) {
  const std::int64_t outs = index.lines * index.height;
  const std::int64_t pairs = Schedule::pairs_of(outs);
  Device device;
  if (Status s = current_device(&device); !s.ok()) return s;
  // Zero clusters: no schedule.
  if (device.major != 9 || pairs == 0 || pairs > Schedule::kMaxPairs) return {};
  const int levels = Schedule::levels(pairs);
  const std::int64_t bytes = pairs * 4 + pairs * ((1 << levels) - 1);
  schedule_pairs<<<1, kThreads, static_cast<std::size_t>(bytes), stream>>>(
      index.pointers, index.others, order, static_cast<int>(outs / 64),
      static_cast<int>(index.height / 64), static_cast<int>(index.depth / 64),
      static_cast<int>(Schedule::in_flight(index.positions * index.depth, 512)),
      std::min(device.multiprocessors / 2, Schedule::kMaxClusters), levels, table);
  return to_status(cudaGetLastError(), "launching schedule_pairs");
}

}  // namespace block_sparse::cuda::plan
