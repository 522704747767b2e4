// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "block_sparse/cuda.h"

/// How the tables of a plan are derived from one orientation of the index.
namespace block_sparse::cuda::plan {

/// The index of the lines and what they are made of.
struct LineIndex {
  const std::int32_t* pointers;
  const std::int32_t* others;
  std::int64_t lines, positions;  // along K
  std::int64_t height, depth;     // of a block, across and along K
};

/// Square blocks of which several lines make a tile of 64 outputs on Hopper.
constexpr bool has_groups(std::int64_t height, std::int64_t depth) {
  return height == depth && (height == 16 || height == 32);
}

/// order[rank] = tile, most blocks first. On Hopper, whose kernel works on two at a time,
/// lines 64 high are paired first, such that the two of a pair have as many positions in
/// common as can be, and stay together.
Status fill_order(const LineIndex& index, std::int32_t* order, Stream stream);

/// order[rank] = line, on Hopper: groups of 128 outputs whose lines share positions.
Status fill_groups(const LineIndex& index, std::int32_t* order, Stream stream);

/// The `Schedule` of the tiles, or lines less than 64 high, in this order, on Hopper.
Status fill_schedule(const LineIndex& index, const std::int32_t* order, std::int32_t* table,
                     Stream stream);

}  // namespace block_sparse::cuda::plan
