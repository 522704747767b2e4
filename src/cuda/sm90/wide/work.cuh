// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/sm90/wide/config.cuh"

namespace block_sparse::cuda::sm90::wide {

/// A cluster's tile: 128 outputs for one tile of tokens.
struct Work {
  int pair;  // of 64 outputs; negative: there is no more
  int token_tile;
};

/// The i-th tile of a cluster by the schedule: rounds as wide as it has, then one for
/// each power of two that the other token tiles are made of.
__device__ inline Work scheduled(const Params& p, int pairs, int cluster, int i) {
  const std::int32_t* schedule = p.lines.schedule;
  const int levels = Schedule::levels(pairs);
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
__device__ inline Work dealt(const Params& p, int pairs, int cluster, int i) {
  const int item = cluster + i * (static_cast<int>(gridDim.x) / kCluster);
  if (item >= pairs * p.token_tiles) return {-1, 0};
  const int round = item / (pairs * p.in_flight);
  const int rest = item - round * pairs * p.in_flight;
  const int first = round * p.in_flight;
  const int width = min(p.in_flight, p.token_tiles - first);
  return {rest / width, first + rest % width};
}

/// A tile and, in lane i, what is stored of its i-th line.
struct Tile {
  int token_tile;  // negative: there is no more
  int out0;        // negative: none
  int begin, end;
};

/// The tiles of a cluster in turn, looked up by a warp several at a time: each takes four
/// reads of memory that depend on each other.
template <class C>
class Tiles {
 public:
  __device__ Tiles(const Params& params, int its_cluster) : p(params), cluster(its_cluster) {
    has_schedule = p.lines.schedule != nullptr &&
                   p.lines.schedule[0] == static_cast<int>(gridDim.x) / kCluster;
  }

  __device__ Tile next() {
    constexpr int kAtATime = 32 / C::kTileLines;
    if (at % kAtATime == 0) look_up();
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int from = at % kAtATime * C::kTileLines + lane % C::kTileLines;
    ++at;
    const Tile t = {__shfl_sync(~0u, mine.token_tile, from), __shfl_sync(~0u, mine.out0, from),
                    __shfl_sync(~0u, mine.begin, from), __shfl_sync(~0u, mine.end, from)};
    return lane < C::kTileLines ? t : Tile{t.token_tile, -1, 0, 0};
  }

 private:
  __device__ void look_up() {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int i = at + lane / C::kTileLines;
    const int pairs = pairs_of<C>(p);
    const Work work = has_schedule ? scheduled(p, pairs, cluster, i) : dealt(p, pairs, cluster, i);
    mine = {-1, -1, 0, 0};
    if (work.pair < 0) return;
    mine.token_tile = work.token_tile;
    const int row = work.pair * C::kTileLines + lane % C::kTileLines;
    if (row >= p.rows) return;
    const int a_line = C::kSide == 64 ? p.line_height / kOuts : 1;
    const std::int32_t* order = C::kSide == 64 ? p.lines.order : p.lines.line_order;
    const int line = order == nullptr ? row / a_line : order[row / a_line];
    mine.out0 = line * p.line_height + row % a_line * kOuts;
    mine.begin = p.lines.pointers[line];
    mine.end = p.lines.pointers[line + 1];
  }

  const Params& p;
  bool has_schedule;  // for as many clusters as there are
  int cluster;
  int at = 0;
  Tile mine;
};

}  // namespace block_sparse::cuda::sm90::wide
