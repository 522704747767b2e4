// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "cuda/common/device.h"
#include "cuda/plan.h"
#include "cuda/plan/cost.cuh"
#include "cuda/plan/fill.h"

namespace block_sparse::cuda::plan {
namespace {

// Beyond this many tiles comparing all pairs costs more than balance brings
// (and so many tiles balance by themselves).
constexpr int kMaxSorted = 16384;

__device__ int tile_blocks(const std::int32_t* pointers, int lines, int per_tile, int tile) {
  const int begin = tile * per_tile;
  const int end = min(begin + per_tile, lines);
  return pointers[end] - pointers[begin];
}

/// order[rank] = tile, ranked by stored blocks, most first; ties keep their order.
__global__ void order_tiles(const std::int32_t* pointers, int lines, int per_tile, int tiles,
                            std::int32_t* order) {
  const int tile = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (tile >= tiles) return;
  if (tiles > kMaxSorted) {
    order[tile] = tile;
    return;
  }
  const int mine = tile_blocks(pointers, lines, per_tile, tile);
  int rank = 0;
  for (int other = 0; other < tiles; ++other) {
    const int theirs = tile_blocks(pointers, lines, per_tile, other);
    rank += theirs > mine || (theirs == mine && other < tile);
  }
  order[rank] = tile;
}

constexpr int kThreads = 1024;
constexpr int kMaxGrouped = 1024;       // lines that one CTA compares: two of them make 20 bits
constexpr int kBitsBytes = 160 * 1024;  // what Hopper has besides the arrays below

/// How much two lines, or groups of them, should be a pair: by the boxes they share, and among
/// equals by a number that no other two have and that favours no line, so that each round finds
/// many pairs of lines which are each other's first choice.
constexpr unsigned kIdBits = 20;
constexpr unsigned kMix = 0x9e375, kUnmix = 0xb94dd;  // inverse of each other
constexpr unsigned kIdMask = (1u << kIdBits) - 1;
static_assert((kMix * kUnmix & kIdMask) == 1);
__device__ unsigned attraction(unsigned shared_boxes, unsigned a, unsigned b) {
  const unsigned id = min(a, b) << kIdBits / 2 | max(a, b);
  return min(shared_boxes, 0xfffu) << kIdBits | (id * kMix & kIdMask);
}
__device__ int partner_of(unsigned attraction, int line) {
  const unsigned id = attraction * kUnmix & kIdMask;
  const auto a = static_cast<int>(id >> kIdBits / 2);
  return a == line ? static_cast<int>(id & ((1u << kIdBits / 2) - 1)) : a;
}

/// Groups of lines by how much they share, greedily: pairs of lines, then pairs of pairs, and
/// so on. Each CTA groups its share of the lines. The groups come by what they take, most
/// first, and what is left over, if lines do not make whole groups, comes last.
__global__ void __launch_bounds__(kThreads)
    group_lines(const std::int32_t* pointers, const std::int32_t* others, int all_lines, int share,
                int words, Walk walk, std::int32_t* order) {
  extern __shared__ unsigned bits[];  // of the boxes of each line, later of each group
  __shared__ unsigned choice[kMaxGrouped];
  __shared__ unsigned weight[kMaxGrouped];
  __shared__ unsigned blocks[kMaxGrouped];
  __shared__ int partner[kMaxGrouped];  // negative: none yet
  __shared__ int leader[kMaxGrouped];   // the line that stands for the group
  __shared__ bool whole[kMaxGrouped];   // a leader's group is as large as there are now
  const int me = static_cast<int>(threadIdx.x);
  const int warp = me / 32;
  const int lane = me % 32;
  const int first_line = static_cast<int>(blockIdx.x) * share;
  const int lines = min(share, all_lines - first_line);
  pointers += first_line;
  for (int i = me; i < lines * words; i += kThreads) bits[i] = 0;
  leader[me] = me;
  whole[me] = me < lines;
  blocks[me] = 0;
  int place = 0;          // of line `me` in its group
  int left_over_at = -1;  // where the group of line `me` begins, if it does not become whole
  int left_over = 0;      // lines of all such groups
  __syncthreads();
  for (int line = warp; line < lines; line += kThreads / 32) {
    for (int i = pointers[line] + lane; i < pointers[line + 1]; i += 32) {
      const int box = others[i] / walk.blocks_a_box;
      // A pattern that breaks the rules is found elsewhere; here it must do no harm.
      if (box < 0 || box >= words * 32) continue;
      atomicOr(&bits[line * words + box / 32], 1u << box % 32);
    }
  }

  for (int size = 1; size < walk.lines; size *= 2) {
    partner[me] = -1;
    int left = __syncthreads_count(whole[me]);
    const bool odd = left % 2 != 0;
    while (left > 1) {
      for (int line = warp; line < lines; line += kThreads / 32) {
        if (!whole[line] || partner[line] >= 0) continue;
        unsigned best = 0;
        for (int other = lane; other < lines; other += 32) {
          if (other == line || !whole[other] || partner[other] >= 0) continue;
          unsigned common = 0;
          for (int w = 0; w < words; ++w) {
            common += __popc(bits[line * words + w] & bits[other * words + w]);
          }
          best = max(best, attraction(common, line, other));
        }
        best = __reduce_max_sync(~0u, best);
        if (lane == 0) choice[line] = best;
      }
      __syncthreads();
      const bool alone = whole[me] && partner[me] < 0;
      const int other = alone ? partner_of(choice[me], me) : 0;
      const bool paired = alone && choice[other] == choice[me];
      left -= __syncthreads_count(paired);
      if (paired) partner[me] = other;
      __syncthreads();
    }
    for (int line = warp; line < lines; line += kThreads / 32) {
      const int other = partner[line];
      if (other <= line) continue;
      for (int w = lane; w < words; w += 32) bits[line * words + w] |= bits[other * words + w];
    }
    const int old = leader[me];
    const int other = me < lines ? partner[old] : -1;
    const bool is_left_over = me < lines && whole[old] && other < 0;
    __syncthreads();
    if (other >= 0 && other < old) {
      leader[me] = other;
      place += size;
    }
    whole[me] = whole[me] && partner[me] > me;
    // The last level's comes first: those of lower levels are behind it.
    if (left_over_at >= 0 && odd) left_over_at += size;
    if (is_left_over) left_over_at = 0;
    if (odd) left_over += size;
    __syncthreads();
  }

  if (me < lines) {
    atomicAdd(&blocks[leader[me]], static_cast<unsigned>(pointers[me + 1] - pointers[me]));
  }
  __syncthreads();
  if (whole[me]) {
    unsigned boxes = 0;
    for (int w = 0; w < words; ++w) boxes += __popc(bits[me * words + w]);
    weight[me] = cost_of(walk, boxes * walk.boxes_a_block, blocks[me] * walk.boxes_a_block);
  }
  __syncthreads();
  if (me >= lines) return;
  const int mine = leader[me];
  int at = lines - left_over + left_over_at;
  if (left_over_at < 0) {
    int rank = 0;
    for (int other = 0; other < lines; ++other) {
      if (!whole[other]) continue;
      rank += weight[other] > weight[mine] || (weight[other] == weight[mine] && other < mine);
    }
    at = rank * walk.lines;
  }
  order[first_line + at + place] = first_line + me;
}

Status order_by_blocks(const LineIndex& index, std::int64_t per_tile, std::int32_t* order,
                       Stream stream) {
  const std::int64_t tiles = (index.lines + per_tile - 1) / per_tile;
  constexpr int kFew = 128;
  order_tiles<<<static_cast<unsigned>((tiles + kFew - 1) / kFew), kFew, 0, stream>>>(
      index.pointers, static_cast<int>(index.lines), static_cast<int>(per_tile),
      static_cast<int>(tiles), order);
  return to_status(cudaGetLastError(), "launching order_tiles");
}

}  // namespace

Status fill_groups(const LineIndex& index, std::int32_t* order, Stream stream) {
  Device device;
  if (Status s = current_device(&device); !s.ok()) return s;
  if (device.major != 9 || index.lines == 0) return {};
  const Walk walk = walk_of(index.height, index.depth);
  const std::int64_t boxes = (index.positions + walk.blocks_a_box - 1) / walk.blocks_a_box;
  const std::int64_t words = (boxes + 31) / 32;
  const std::int64_t fit = std::min<std::int64_t>(kMaxGrouped, kBitsBytes / (words * 4));
  const std::int64_t share = fit / walk.lines * walk.lines;
  if (share == 0) return order_by_blocks(index, 1, order, stream);
  if (Status s = allow_shared_memory(group_lines, kBitsBytes); !s.ok()) return s;
  const std::int64_t bytes = std::min(share, index.lines) * words * 4;
  group_lines<<<static_cast<unsigned>((index.lines + share - 1) / share), kThreads,
                static_cast<std::size_t>(bytes), stream>>>(
      index.pointers, index.others, static_cast<int>(index.lines), static_cast<int>(share),
      static_cast<int>(words), walk, order);
  return to_status(cudaGetLastError(), "launching group_lines");
}

Status fill_order(const LineIndex& index, std::int32_t* order, Stream stream) {
  if (index.lines == 0) return {};
  Device device;
  if (Status s = current_device(&device); !s.ok()) return s;
  return device.major == 9 && index.height == 64 && index.depth % 64 == 0
             ? fill_groups(index, order, stream)
             : order_by_blocks(index, lines_per_tile(index.height), order, stream);
}

}  // namespace block_sparse::cuda::plan
