// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

/// Element types as the kernels load and store them; arithmetic is in f32.
namespace block_sparse::cpu {

struct Bf16 {
  std::uint16_t bits;
};
struct F16 {
  std::uint16_t bits;
};

}  // namespace block_sparse::cpu
