// SPDX-License-Identifier: Apache-2.0
#include "lists_cases.h"

namespace block_sparse::cuda::test {

std::vector<LayerCase> lists_cases() {
  std::vector<LayerCase> cases;
  for (const DataType type : {DataType::bf16, DataType::f16}) {
    for (const std::int64_t b : {16, 32}) {
      // Tiles of tokens whole and not, one and several tiles of outputs.
      for (const std::int64_t tokens : {1, 3, 127, 128, 129, 1000}) {
        cases.push_back({.out = 512,
                         .in = 384,
                         .block_height = b,
                         .block_width = b,
                         .density = 0.4,
                         .tokens = tokens,
                         .dtype = type});
      }
      // K of several windows of the index and rounds of the ring; features that fill
      // neither a tile nor a stage; at 1.0 the most blocks a stage can hold.
      for (const double density : {0.01, 0.1, 1.0}) {
        cases.push_back({.out = 800,
                         .in = 2720,
                         .block_height = b,
                         .block_width = b,
                         .density = density,
                         .tokens = 300,
                         .dtype = type,
                         .gap = 8});
      }
      for (const Fill fill : {Fill::power_law, Fill::one_full_row, Fill::empty}) {
        cases.push_back({.out = 768,
                         .in = 1056,
                         .block_height = b,
                         .block_width = b,
                         .density = 0.3,
                         .tokens = 300,
                         .dtype = type,
                         .fill = fill,
                         .spare_slots = 40});
      }
      cases.push_back(
          {.out = b, .in = b, .block_height = b, .block_width = b, .tokens = 65, .dtype = type});
    }
    cases.push_back(
        {.out = 80, .in = 48, .block_height = 16, .block_width = 16, .tokens = 65, .dtype = type});
  }
  // More tiles than multiprocessors, several rounds of token tiles.
  cases.push_back({.out = 2400,
                   .in = 160,
                   .block_height = 32,
                   .block_width = 32,
                   .density = 0.2,
                   .tokens = 5000});
  return cases;
}

}  // namespace block_sparse::cuda::test
