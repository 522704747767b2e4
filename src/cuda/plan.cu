// SPDX-License-Identifier: Apache-2.0
#include "cuda/plan.h"

#include <iterator>

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

struct Table {
  std::int64_t (*length)(const PatternView&);
  Status (*fill)(const PatternView&, std::int32_t* table, Stream);
};

/// In the order of PlanTable. Lengths depend on extents alone, never on the
/// device or on how many blocks there are: a plan is rebuilt in place, and an
/// exported program carries it along.
constexpr Table kTables[] = {
    {[](const PatternView& p) { return tiles_of(p.n_block_rows(), p.block_height); },
     [](const PatternView& p, std::int32_t* table, Stream stream) {
       return order_lines(p.crow_indices, p.n_block_rows(), p.block_height, table, stream);
     }},
    {[](const PatternView& p) { return tiles_of(p.n_block_cols(), p.block_width); },
     [](const PatternView& p, std::int32_t* table, Stream stream) {
       return order_lines(p.ccol_indices, p.n_block_cols(), p.block_width, table, stream);
     }},
};
static_assert(std::size(kTables) == static_cast<std::size_t>(PlanTable::count));

// Tables begin at whole lines of 128 bytes.
constexpr std::int64_t kAlignment = 32;

// Raised whenever a table changes its length or meaning. The length of a plan
// modulo kVersions is its version, so that a plan which comes from an older
// version (with an exported program, say) is recognised without being read.
constexpr std::int64_t kVersion = 1;
constexpr std::int64_t kVersions = 64;

std::int64_t rounded_up(std::int64_t value, std::int64_t to) { return (value + to - 1) / to * to; }

/// Where a table begins; for `count`, where the last one ends.
std::int64_t offset_of(const PatternView& p, PlanTable table) {
  std::int64_t offset = 0;
  for (int i = 0; i < static_cast<int>(table); ++i) {
    offset += rounded_up(kTables[i].length(p), kAlignment);
  }
  return offset;
}

}  // namespace

const std::int32_t* plan_table(const PatternView& p, const std::int32_t* plan, PlanTable table) {
  return plan == nullptr ? nullptr : plan + offset_of(p, table);
}

std::int64_t plan_size(const PatternView& p) {
  return rounded_up(offset_of(p, PlanTable::count), kVersions) + kVersion;
}

Status build_plan(const PatternView& p, std::int32_t* plan, Stream stream) {
  if (p.crow_indices == nullptr || p.ccol_indices == nullptr || plan == nullptr) {
    return Status::invalid_argument(
        "build_plan needs crow_indices, ccol_indices and plan, got a null pointer.");
  }
  // What lies between tables is defined too, so that equal plans are equal.
  const std::size_t bytes = static_cast<std::size_t>(plan_size(p)) * sizeof(std::int32_t);
  if (Status s = to_status(cudaMemsetAsync(plan, 0, bytes, stream), "clearing a plan"); !s.ok()) {
    return s;
  }
  for (int i = 0; i < static_cast<int>(PlanTable::count); ++i) {
    std::int32_t* table = plan + offset_of(p, static_cast<PlanTable>(i));
    if (Status s = kTables[i].fill(p, table, stream); !s.ok()) return s;
  }
  return {};
}

}  // namespace block_sparse::cuda
