// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace block_sparse::cuda::plan {

/// What a tile of two lines takes by the positions and the blocks that the lines have,
/// in bytes that come from L2 (a position 32 KB of x, a block its share of W, 4 KB) and
/// what it writes as if it were two positions. In units of 2 KB.
__device__ __forceinline__ unsigned cost_of(unsigned positions, unsigned blocks) {
  return 16 * (positions + 2) + 2 * blocks;
}

}  // namespace block_sparse::cuda::plan
