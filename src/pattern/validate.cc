// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdint>
#include <limits>
#include <new>
#include <string>
#include <vector>

#include "block_sparse/pattern.h"
#include "common/checked.h"
#include "pattern/extents.h"

namespace block_sparse {
namespace {

std::string at(const char* array, std::int64_t i) {
  return std::string(array) + "[" + std::to_string(i) + "]";
}

Status expected(const std::string& what, std::int64_t came, const std::string& expected) {
  return Status::invalid_argument(what + " is " + std::to_string(came) + ", expected " + expected);
}

/// One orientation of a pattern, with the names that its messages use.
struct Lines {
  const char* pointers_name;
  const char* indices_name;
  const char* ids_name;
  const std::int32_t* pointers;
  const std::int32_t* indices;
  const std::int32_t* ids;
  std::int64_t n_lines;
  std::int64_t n_indices;  // indices lie in [0, n_indices)
};

Lines rows_of(const PatternView& p) {
  return {"crow_indices", "col_indices", "block_ids",      p.crow_indices,
          p.col_indices,  p.block_ids,   p.n_block_rows(), p.n_block_cols()};
}

Lines columns_of(const PatternView& p) {
  return {"ccol_indices", "row_indices", "t_block_ids",    p.ccol_indices,
          p.row_indices,  p.t_block_ids, p.n_block_cols(), p.n_block_rows()};
}

/// No early exit, so that the loop vectorises; the culprit is looked for only
/// when there is one.
bool all_below(const std::int32_t* values, std::int64_t n, std::int64_t limit) {
  const auto bound = static_cast<std::uint32_t>(limit);
  std::uint32_t bad = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    bad |= static_cast<std::uint32_t>(static_cast<std::uint32_t>(values[i]) >= bound);
  }
  return bad == 0;
}

bool ascending(const std::int32_t* values, std::int64_t n) {
  std::uint32_t bad = 0;
  for (std::int64_t i = 1; i < n; ++i) {
    bad |= static_cast<std::uint32_t>(values[i] < values[i - 1]);
  }
  return bad == 0;
}

Status out_of_range(const char* name, const std::int32_t* values, std::int64_t n,
                    std::int64_t limit) {
  const std::int32_t* bad = std::find_if(
      values, values + n, [limit](std::int32_t value) { return value < 0 || value >= limit; });
  return expected(at(name, bad - values), *bad, "at least 0 and below " + std::to_string(limit));
}

Status check_lines(const Lines& lines, std::int64_t slots) {
  if (lines.pointers == nullptr) {
    return Status::invalid_argument(std::string(lines.pointers_name) + " is null, expected " +
                                    std::to_string(lines.n_lines + 1) + " pointers");
  }
  if (lines.pointers[0] != 0) {
    return expected(at(lines.pointers_name, 0), lines.pointers[0], "0");
  }
  if (!ascending(lines.pointers, lines.n_lines + 1)) {
    const std::int32_t* bad =
        std::is_sorted_until(lines.pointers, lines.pointers + lines.n_lines + 1);
    return expected(at(lines.pointers_name, bad - lines.pointers), *bad,
                    "at least the " + std::to_string(bad[-1]) + " before it");
  }
  const std::int64_t blocks = lines.pointers[lines.n_lines];
  if (blocks > slots) {
    return expected(at(lines.pointers_name, lines.n_lines), blocks,
                    "at most the " + std::to_string(slots) + " slots of values");
  }
  if (blocks == 0) return {};
  if (lines.indices == nullptr || lines.ids == nullptr) {
    return Status::invalid_argument(
        std::string(lines.indices == nullptr ? lines.indices_name : lines.ids_name) +
        " is null, expected " + std::to_string(blocks) + " entries");
  }
  if (!all_below(lines.indices, blocks, lines.n_indices)) {
    return out_of_range(lines.indices_name, lines.indices, blocks, lines.n_indices);
  }
  if (!all_below(lines.ids, blocks, slots)) {
    return out_of_range(lines.ids_name, lines.ids, blocks, slots);
  }
  return {};
}

/// Columns strictly ascend within each row.
Status check_order(const PatternView& p) {
  for (std::int64_t row = 0; row < p.n_block_rows(); ++row) {
    for (std::int32_t i = p.crow_indices[row] + 1; i < p.crow_indices[row + 1]; ++i) {
      if (p.col_indices[i] > p.col_indices[i - 1]) continue;
      return expected(at("col_indices", i), p.col_indices[i],
                      "more than the " + std::to_string(p.col_indices[i - 1]) +
                          " before it in block row " + std::to_string(row));
    }
  }
  return {};
}

Status check_unique_slots(const PatternView& p) {
  const std::int64_t blocks = p.n_blocks();
  if (blocks == 0) return {};
  const std::int32_t largest = *std::max_element(p.block_ids, p.block_ids + blocks);
  std::vector<bool> taken(static_cast<std::size_t>(largest) + 1);
  for (std::int64_t i = 0; i < blocks; ++i) {
    const auto slot = static_cast<std::size_t>(p.block_ids[i]);
    if (taken[slot]) {
      return expected(at("block_ids", i), p.block_ids[i], "a slot that no block before it has");
    }
    taken[slot] = true;
  }
  return {};
}

}  // namespace

Status check_extents(const PatternView& p) {
  constexpr std::int64_t int32_max = std::numeric_limits<std::int32_t>::max();
  const std::string to_int32_max = "a number from 0 to " + std::to_string(int32_max);
  if (p.block_height < 1) return expected("block_height", p.block_height, "at least 1");
  if (p.block_width < 1) return expected("block_width", p.block_width, "at least 1");
  if (p.rows < 0) return expected("rows", p.rows, "at least 0");
  if (p.cols < 0) return expected("cols", p.cols, "at least 0");
  if (p.slots < 0 || p.slots > int32_max) return expected("slots", p.slots, to_int32_max);
  // Subtracting first keeps n_block_rows() itself from overflowing.
  constexpr std::int64_t int64_max = std::numeric_limits<std::int64_t>::max();
  if (p.rows > int64_max - p.block_height || p.n_block_rows() >= int32_max) {
    return expected("the number of block rows", p.rows / p.block_height,
                    "fewer than " + std::to_string(int32_max));
  }
  if (p.cols > int64_max - p.block_width || p.n_block_cols() >= int32_max) {
    return expected("the number of block columns", p.cols / p.block_width,
                    "fewer than " + std::to_string(int32_max));
  }
  // Byte offsets into values (slots, block_height, block_width) of 8-byte elements.
  if (!checked_product({p.slots, p.block_height, p.block_width, 8}) ||
      !checked_product({p.n_block_rows(), p.block_height}) ||
      !checked_product({p.n_block_cols(), p.block_width})) {
    return Status::invalid_argument(
        "values of shape (" + std::to_string(p.slots) + ", " + std::to_string(p.block_height) +
        ", " + std::to_string(p.block_width) + ") is too large, expected below 2^63 bytes");
  }
  return {};
}

Status check_bounds(const PatternView& pattern) {
  if (Status status = check_extents(pattern); !status.ok()) return status;
  return check_lines(rows_of(pattern), pattern.slots);
}

Status check_transpose_bounds(const PatternView& pattern) {
  if (Status status = check_extents(pattern); !status.ok()) return status;
  return check_lines(columns_of(pattern), pattern.slots);
}

Status validate(const PatternView& pattern) {
  if (Status status = check_bounds(pattern); !status.ok()) return status;
  if (Status status = check_order(pattern); !status.ok()) return status;
  try {
    return check_unique_slots(pattern);
  } catch (const std::bad_alloc&) {
    return Status::out_of_memory("not enough memory to look for repeated block_ids");
  }
}

}  // namespace block_sparse
