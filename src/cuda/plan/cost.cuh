// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace block_sparse::cuda::plan {

/// How the kernel of Hopper walks over lines of a height: that many of them at once,
/// through boxes of x that are so many blocks, or such a part of a block, deep.
struct Walk {
  int lines;           // of a group, or parts of 64 outputs of taller ones
  int blocks_a_box;    // along K
  int boxes_a_block;   // along K
  int x_cost, w_cost;  // of a box, and of the part of a block that goes with it
  int tile_cost;       // of what is written
};

/// Costs are bytes between L2 and a CTA in units of 256: a box of 256 tokens, half of a block,
/// which two CTAs share, and 64 KB of y.
constexpr Walk walk_of(std::int64_t height, std::int64_t depth) {
  const int side = height < 64 ? static_cast<int>(height) : 64;
  const int box = side == 64 ? 64 : 32;
  return {128 / side, box / side,        depth > box ? static_cast<int>(depth / box) : 1,
          box * 2,    side * side / 256, 256};
}

__device__ __forceinline__ unsigned cost_of(const Walk& walk, unsigned boxes, unsigned blocks) {
  return walk.x_cost * boxes + walk.w_cost * blocks + walk.tile_cost;
}

}  // namespace block_sparse::cuda::plan
