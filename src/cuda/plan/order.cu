// SPDX-License-Identifier: Apache-2.0
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

constexpr int kPairThreads = 1024;
constexpr int kMaxPaired = 1024;        // lines: two of them make 20 bits
constexpr int kPairBytes = 160 * 1024;  // what Hopper has besides the arrays below

/// How much two lines should be a pair: by the positions they share, and among equals
/// by a number that no other two have and that favours no line, so that each round
/// finds many pairs of lines which are each other's first choice.
constexpr unsigned kIdBits = 20;
constexpr unsigned kMix = 0x9e375, kUnmix = 0xb94dd;  // inverse of each other
constexpr unsigned kIdMask = (1u << kIdBits) - 1;
static_assert((kMix * kUnmix & kIdMask) == 1);
__device__ unsigned attraction(unsigned shared_positions, unsigned a, unsigned b) {
  const unsigned id = min(a, b) << kIdBits / 2 | max(a, b);
  return min(shared_positions, 0xfffu) << kIdBits | (id * kMix & kIdMask);
}
__device__ int partner_of(unsigned attraction, int line) {
  const unsigned id = attraction * kUnmix & kIdMask;
  const auto a = static_cast<int>(id >> kIdBits / 2);
  return a == line ? static_cast<int>(id & ((1u << kIdBits / 2) - 1)) : a;
}

/// Pairs of lines by how much they share, greedily; one CTA. What is left over, if
/// lines are odd, comes last.
__global__ void __launch_bounds__(kPairThreads)
    pair_lines(const std::int32_t* pointers, const std::int32_t* others, int lines, int words,
               std::int32_t* order) {
  extern __shared__ unsigned bits[];  // of the positions of each line
  __shared__ unsigned choice[kMaxPaired];
  __shared__ unsigned weight[kMaxPaired];
  __shared__ int partner[kMaxPaired];  // negative: none yet
  const int me = static_cast<int>(threadIdx.x);
  const int warp = me / 32;
  const int lane = me % 32;
  for (int i = me; i < lines * words; i += kPairThreads) bits[i] = 0;
  partner[me] = -1;
  __syncthreads();
  for (int line = warp; line < lines; line += kPairThreads / 32) {
    for (int i = pointers[line] + lane; i < pointers[line + 1]; i += 32) {
      atomicOr(&bits[line * words + others[i] / 32], 1u << others[i] % 32);
    }
  }
  __syncthreads();

  for (int left = lines; left > 1;) {
    for (int line = warp; line < lines; line += kPairThreads / 32) {
      if (partner[line] >= 0) continue;
      unsigned best = 0;
      for (int other = lane; other < lines; other += 32) {
        if (other == line || partner[other] >= 0) continue;
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
    const bool alone = me < lines && partner[me] < 0;
    const int other = alone ? partner_of(choice[me], me) : 0;
    const bool paired = alone && choice[other] == choice[me];
    left -= __syncthreads_count(paired);
    if (paired) partner[me] = other;
    __syncthreads();
  }

  // The pairs by what they take, most first; the first line of each counts for both.
  const bool first = me < lines && partner[me] > me;
  if (me < lines) {
    unsigned together = 0, blocks = 0;
    for (int w = 0; first && w < words; ++w) {
      const unsigned a = bits[me * words + w], b = bits[partner[me] * words + w];
      together += __popc(a | b);
      blocks += __popc(a) + __popc(b);
    }
    weight[me] = cost_of(together, blocks);
  }
  __syncthreads();
  if (me < lines && partner[me] < 0) order[lines - 1] = me;
  if (!first) return;
  int rank = 0;
  for (int other = 0; other < lines; ++other) {
    if (partner[other] <= other) continue;
    rank += weight[other] > weight[me] || (weight[other] == weight[me] && other < me);
  }
  order[2 * rank] = me;
  order[2 * rank + 1] = partner[me];
}

}  // namespace

Status fill_order(const LineIndex& index, std::int32_t* order, Stream stream) {
  const std::int64_t tiles = tiles_of(index.lines, index.height);
  if (tiles == 0) return {};
  Device device;
  if (Status s = current_device(&device); !s.ok()) return s;
  const std::int64_t words = (index.positions + 31) / 32;
  const std::int64_t bytes = index.lines * words * 4;
  if (device.major == 9 && index.height == 64 && index.lines <= kMaxPaired && bytes <= kPairBytes) {
    if (Status s = allow_shared_memory(pair_lines, kPairBytes); !s.ok()) return s;
    pair_lines<<<1, kPairThreads, static_cast<std::size_t>(bytes), stream>>>(
        index.pointers, index.others, static_cast<int>(index.lines), static_cast<int>(words),
        order);
    return to_status(cudaGetLastError(), "launching pair_lines");
  }
  constexpr int kThreads = 128;
  order_tiles<<<static_cast<unsigned>((tiles + kThreads - 1) / kThreads), kThreads, 0, stream>>>(
      index.pointers, static_cast<int>(index.lines), static_cast<int>(lines_per_tile(index.height)),
      static_cast<int>(tiles), order);
  return to_status(cudaGetLastError(), "launching order_tiles");
}

}  // namespace block_sparse::cuda::plan
