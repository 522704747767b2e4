// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/sm90/wide/config.cuh"

namespace block_sparse::cuda::sm90::wide {

/// A cluster's tile: segments 2 pair and 2 pair + 1 for one tile of tokens.
struct Work {
  int pair;  // negative: there is no more
  int token_tile;
};

/// The i-th tile of a cluster by the schedule: rounds as wide as it has, then one for
/// each power of two that the other token tiles are made of.
__device__ inline Work scheduled(const Params& p, int cluster, int i) {
  const std::int32_t* schedule = p.lines.schedule;
  const int levels = Schedule::levels((p.segments + 1) / kConsumers);
  int first = 0;  // token tile
  for (int level = levels - 1; level >= 0; --level) {
    const int rounds = level == levels - 1 ? p.token_tiles >> level : p.token_tiles >> level & 1;
    if (rounds == 0) continue;
    const std::int32_t* offsets = schedule + Schedule::offsets(level) + cluster;
    const int begin = offsets[0];
    const int count = offsets[1] - begin;
    if (i < rounds * count) {
      const std::int32_t item = schedule[begin + i % count];
      return {Schedule::pair_of(item),
              first + (i / count << level) + Schedule::token_tile_of(item)};
    }
    i -= rounds * count;
    first += rounds << level;
  }
  return {-1, 0};
}

/// The same without one: all outputs, heaviest first, for a few tiles of tokens, then
/// the next few.
__device__ inline Work dealt(const Params& p, int cluster, int i) {
  const int pairs = (p.segments + 1) / kConsumers;
  const int item = cluster + i * (static_cast<int>(gridDim.x) / kCluster);
  if (item >= pairs * p.token_tiles) return {-1, 0};
  const int round = item / (pairs * p.in_flight);
  const int rest = item - round * pairs * p.in_flight;
  const int first = round * p.in_flight;
  const int width = min(p.in_flight, p.token_tiles - first);
  return {rest / width, first + rest % width};
}

/// A tile and what is stored of its two lines.
struct Tile {
  int token_tile;        // negative: there is no more
  int out0[kConsumers];  // negative: none
  int begin[kConsumers], end[kConsumers];
  int offset[kConsumers];  // of the 64 outputs within a taller line
};

/// The tiles of a cluster in turn, looked up by a warp 32 at a time: each takes four
/// reads of memory that depend on each other.
class Tiles {
 public:
  __device__ Tiles(const Params& params, int its_cluster) : p(params), cluster(its_cluster) {
    has_schedule = p.lines.schedule != nullptr &&
                   p.lines.schedule[0] == static_cast<int>(gridDim.x) / kCluster;
  }

  __device__ Tile next() {
    if (at % 32 == 0) look_up();
    const int from = at % 32;
    ++at;
    Tile t;
    t.token_tile = __shfl_sync(~0u, mine.token_tile, from);
#pragma unroll
    for (int c = 0; c < kConsumers; ++c) {
      t.out0[c] = __shfl_sync(~0u, mine.out0[c], from);
      t.begin[c] = __shfl_sync(~0u, mine.begin[c], from);
      t.end[c] = __shfl_sync(~0u, mine.end[c], from);
      t.offset[c] = __shfl_sync(~0u, mine.offset[c], from);
    }
    return t;
  }

 private:
  __device__ void look_up() {
    const int i = at + static_cast<int>(threadIdx.x) % 32;
    const Work work = has_schedule ? scheduled(p, cluster, i) : dealt(p, cluster, i);
    mine = {-1, {-1, -1}, {0, 0}, {0, 0}, {0, 0}};
    if (work.pair < 0) return;
    mine.token_tile = work.token_tile;
#pragma unroll
    for (int c = 0; c < kConsumers; ++c) {
      const int segment = work.pair * kConsumers + c;
      if (segment >= p.segments) continue;
      const Segment place = segment_of(p.lines, p.line_height, segment);
      mine.out0[c] = place.line * p.line_height + place.offset;
      mine.offset[c] = place.offset;
      mine.begin[c] = p.lines.pointers[place.line];
      mine.end[c] = p.lines.pointers[place.line + 1];
    }
  }

  const Params& p;
  bool has_schedule;  // for as many clusters as there are
  int cluster;
  int at = 0;
  Tile mine;
};

}  // namespace block_sparse::cuda::sm90::wide
