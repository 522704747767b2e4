// SPDX-License-Identifier: Apache-2.0
#include "block_sparse/pattern.h"

#include <new>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "pattern/extents.h"

namespace block_sparse {
namespace {

/// Cuts an array that may be as long as the slots down to the blocks.
Status trim(const char* name, std::int64_t blocks, std::int64_t slots,
            std::vector<std::int32_t>* array) {
  const auto size = static_cast<std::int64_t>(array->size());
  if (size < blocks || size > slots) {
    return Status::invalid_argument(std::string(name) + " has " + std::to_string(size) +
                                    " entries, expected from " + std::to_string(blocks) +
                                    " (the stored blocks) to " + std::to_string(slots) +
                                    " (the slots)");
  }
  array->resize(static_cast<std::size_t>(blocks));
  return {};
}

}  // namespace

Status Pattern::create(std::int64_t rows, std::int64_t cols, std::int64_t block_height,
                       std::int64_t block_width, std::vector<std::int32_t> crow_indices,
                       std::vector<std::int32_t> col_indices, std::vector<std::int32_t> block_ids,
                       std::int64_t slots, Pattern* out) {
  if (out == nullptr) return Status::invalid_argument("out is null, expected a Pattern to fill");
  try {
    Pattern made;
    made.extent_.rows = rows;
    made.extent_.cols = cols;
    made.extent_.block_height = block_height;
    made.extent_.block_width = block_width;
    made.extent_.slots = slots;
    // The extents alone first: they say how long the arrays must be.
    if (Status status = check_extents(made.extent_); !status.ok()) return status;

    const std::int64_t block_rows = made.extent_.n_block_rows();
    if (static_cast<std::int64_t>(crow_indices.size()) != block_rows + 1) {
      return Status::invalid_argument("crow_indices has " + std::to_string(crow_indices.size()) +
                                      " entries, expected " + std::to_string(block_rows + 1) +
                                      " (the block rows and one)");
    }
    const std::int64_t blocks = crow_indices.back();
    if (blocks >= 0 && blocks <= slots) {  // else validate() says what is wrong
      if (block_ids.empty()) {
        block_ids.resize(static_cast<std::size_t>(blocks));
        std::iota(block_ids.begin(), block_ids.end(), 0);
      }
      if (Status status = trim("col_indices", blocks, slots, &col_indices); !status.ok()) {
        return status;
      }
      if (Status status = trim("block_ids", blocks, slots, &block_ids); !status.ok()) {
        return status;
      }
    }
    made.crow_ = std::move(crow_indices);
    made.col_ = std::move(col_indices);
    made.ids_ = std::move(block_ids);
    if (Status status = validate(made.view()); !status.ok()) return status;

    made.ccol_.resize(static_cast<std::size_t>(made.extent_.n_block_cols()) + 1);
    made.row_.resize(made.col_.size());
    made.t_ids_.resize(made.col_.size());
    transpose(made.view(), made.ccol_.data(), made.row_.data(), made.t_ids_.data());
    *out = std::move(made);
    return {};
  } catch (const std::bad_alloc&) {
    return Status::out_of_memory("not enough memory for the pattern");
  }
}

PatternView Pattern::view() const {
  PatternView view = extent_;
  view.crow_indices = crow_.data();
  view.col_indices = col_.data();
  view.block_ids = ids_.data();
  view.ccol_indices = ccol_.data();
  view.row_indices = row_.data();
  view.t_block_ids = t_ids_.data();
  return view;
}

}  // namespace block_sparse
