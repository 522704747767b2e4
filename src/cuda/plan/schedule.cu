// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "cuda/common/device.h"
#include "cuda/plan.h"
#include "cuda/plan/cost.cuh"
#include "cuda/plan/fill.h"

namespace block_sparse::cuda::plan {
namespace {

constexpr int kThreads = 1024;

/// Whether a line has a block in a box of x.
__device__ bool has_box(const std::int32_t* pointers, const std::int32_t* others, int line, int box,
                        int blocks_a_box) {
  int low = pointers[line], high = pointers[line + 1];
  const int end = high;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (others[middle] < box * blocks_a_box) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low < end && others[low] / blocks_a_box == box;
}

/// What the tile of the lines from `first` on takes; by a whole warp.
__device__ unsigned cost_of_tile(const std::int32_t* pointers, const std::int32_t* others,
                                 const std::int32_t* order, int rows, int a_line, const Walk& walk,
                                 int first) {
  unsigned boxes = 0;  // in each lane: its share
  unsigned blocks = 0;
  for (int row = first; row < min(first + walk.lines, rows); ++row) {
    const int line = order[row / a_line];
    const int begin = pointers[line], end = pointers[line + 1];
    blocks += static_cast<unsigned>(end - begin);
    for (int i = begin + static_cast<int>(threadIdx.x) % 32; i < end; i += 32) {
      const int box = others[i] / walk.blocks_a_box;
      bool is_new = i == begin || others[i - 1] / walk.blocks_a_box != box;
      for (int before = first; is_new && before < row; ++before) {
        const int other = order[before / a_line];
        is_new = other != line && !has_box(pointers, others, other, box, walk.blocks_a_box);
      }
      boxes += is_new;
    }
  }
  boxes = __reduce_add_sync(~0u, boxes);
  return cost_of(walk, boxes * walk.boxes_a_block, blocks * walk.boxes_a_block);
}

/// Deals the pairs of tiles to clusters, each to the one that is free first; one CTA.
/// The token tiles come in rounds of as many as `fit` in L2, or of one where all of W stays
/// there anyway, as then x need not; but of two where the last would be alone. In a round the
/// heaviest pairs come first.
__global__ void __launch_bounds__(kThreads)
    schedule_pairs(const std::int32_t* pointers, const std::int32_t* others,
                   const std::int32_t* order, int lines, int rows, int a_line, Walk walk,
                   int block_bytes, int fit, int clusters, int levels, std::int32_t* table) {
  extern __shared__ unsigned costs[];  // of the pairs
  const int pairs = (rows + walk.lines - 1) / walk.lines;
  auto* cluster_of = reinterpret_cast<unsigned char*>(costs + pairs);  // of all items, by level
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int pair = warp; pair < pairs; pair += kThreads / 32) {
    const unsigned cost =
        cost_of_tile(pointers, others, order, rows, a_line, walk, pair * walk.lines);
    if (lane == 0) costs[pair] = cost;
  }
  __syncthreads();
  const bool weights_stay =
      static_cast<std::int64_t>(pointers[lines]) * block_bytes <= Schedule::kWeightBytes;
  // The token tiles of a round that begins with `first` of `tiles`.
  const auto width_of = [&](int tiles, int first) {
    const int in_flight = weights_stay && tiles > fit ? 1 : fit;
    return tiles - first - in_flight >= max(in_flight, 2) ? in_flight : tiles - first;
  };
  if (warp < levels) {
    const int tiles = 1 << warp;
    unsigned char* mine = cluster_of + pairs * (tiles - 1);
    unsigned busy[Schedule::kMaxClusters / 32];  // of clusters lane, lane + 32, ...
#pragma unroll
    for (int i = 0; i < Schedule::kMaxClusters / 32; ++i) {
      busy[i] = lane + i * 32 < clusters ? 0 : ~0u >> 7;
    }
    for (int first = 0; first < tiles;) {
      const int width = width_of(tiles, first);
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
        const int width = width_of(tiles, first);
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
  const Walk walk = walk_of(index.height, index.depth);
  const std::int64_t side = 128 / walk.lines;
  schedule_pairs<<<1, kThreads, static_cast<std::size_t>(bytes), stream>>>(
      index.pointers, index.others, order, static_cast<int>(index.lines),
      static_cast<int>(outs / side), static_cast<int>(index.height / side), walk,
      static_cast<int>(index.height * index.depth * 2),
      static_cast<int>(Schedule::in_flight(index.positions * index.depth, 512)),
      std::min(device.multiprocessors / 2, Schedule::kMaxClusters), levels, table);
  return to_status(cudaGetLastError(), "launching schedule_pairs");
}

}  // namespace block_sparse::cuda::plan
