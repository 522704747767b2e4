// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace block_sparse::cpu {

struct Range {
  std::int64_t begin;
  std::int64_t end;
};

}  // namespace block_sparse::cpu
