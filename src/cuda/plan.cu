// SPDX-License-Identifier: Apache-2.0
#include "cuda/plan.h"

#include "block_sparse/cuda.h"
#include "cuda/common/device.h"

namespace block_sparse::cuda {
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
  if (pointers == nullptr || tiles > kMaxSorted) {
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

Status order_lines(const std::int32_t* pointers, std::int64_t lines, std::int64_t line_height,
                   std::int32_t* order, Stream stream) {
  const std::int64_t tiles = tiles_of(lines, line_height);
  if (tiles == 0) return {};
  constexpr int kThreads = 128;
  order_tiles<<<static_cast<unsigned>((tiles + kThreads - 1) / kThreads), kThreads, 0, stream>>>(
      pointers, static_cast<int>(lines), static_cast<int>(lines_per_tile(line_height)),
      static_cast<int>(tiles), order);
  return to_status(cudaGetLastError(), "launching order_tiles");
}

}  // namespace

std::int64_t plan_size(const PatternView& p) {
  return tiles_of(p.n_block_rows(), p.block_height) + tiles_of(p.n_block_cols(), p.block_width);
}

Status build_plan(const PatternView& p, std::int32_t* plan, Stream stream) {
  if (p.crow_indices == nullptr || plan == nullptr) {
    return Status::invalid_argument("build_plan needs crow_indices and plan, got a null pointer.");
  }
  if (Status s = order_lines(p.crow_indices, p.n_block_rows(), p.block_height, plan, stream);
      !s.ok()) {
    return s;
  }
  return order_lines(p.ccol_indices, p.n_block_cols(), p.block_width,
                     plan + tiles_of(p.n_block_rows(), p.block_height), stream);
}

}  // namespace block_sparse::cuda
