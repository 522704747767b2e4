// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>

namespace block_sparse {

/// The product of non-negative factors, taken from the left, or nothing if int64
/// cannot hold it.
static inline std::optional<std::int64_t> checked_product(
    std::initializer_list<std::int64_t> factors) {
  std::int64_t product = 1;
  for (const std::int64_t factor : factors) {
    if (__builtin_mul_overflow(product, factor, &product)) return std::nullopt;
  }
  return product;
}

}  // namespace block_sparse
