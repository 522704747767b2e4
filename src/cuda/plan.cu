// SPDX-License-Identifier: Apache-2.0
#include "cuda/plan.h"

#include <iterator>

#include "block_sparse/cuda.h"
#include "cuda/common/device.h"
#include "cuda/plan/fill.h"

namespace block_sparse::cuda {
namespace {

std::int64_t schedule_length(std::int64_t lines, std::int64_t line_height,
                             std::int64_t line_depth) {
  const bool wide = line_height % 64 == 0 && line_depth % 64 == 0;
  return wide || plan::has_groups(line_height, line_depth)
             ? Schedule::length(Schedule::pairs_of(lines * line_height))
             : 0;
}

struct Table {
  std::int64_t (*length)(const PatternView&);
  /// The plan's beginning is given, too: a table may be derived from those before it.
  Status (*fill)(const PatternView&, const std::int32_t* plan, std::int32_t* table, Stream);
};

plan::LineIndex rows_of(const PatternView& p) {
  return {p.crow_indices,   p.col_indices,  p.n_block_rows(),
          p.n_block_cols(), p.block_height, p.block_width};
}
plan::LineIndex columns_of(const PatternView& p) {
  return {p.ccol_indices,   p.row_indices, p.n_block_cols(),
          p.n_block_rows(), p.block_width, p.block_height};
}

/// In the order of PlanTable. Lengths depend on extents alone, never on the
/// device or on how many blocks there are: a plan is rebuilt in place, and an
/// exported program carries it along.
constexpr Table kTables[] = {
    {[](const PatternView& p) { return tiles_of(p.n_block_rows(), p.block_height); },
     [](const PatternView& p, const std::int32_t*, std::int32_t* table, Stream stream) {
       return plan::fill_order(rows_of(p), table, stream);
     }},
    {[](const PatternView& p) { return tiles_of(p.n_block_cols(), p.block_width); },
     [](const PatternView& p, const std::int32_t*, std::int32_t* table, Stream stream) {
       return plan::fill_order(columns_of(p), table, stream);
     }},
    {[](const PatternView& p) {
       return plan::has_groups(p.block_height, p.block_width) ? p.n_block_rows() : 0;
     },
     [](const PatternView& p, const std::int32_t*, std::int32_t* table, Stream stream) {
       return plan::fill_groups(rows_of(p), table, stream);
     }},
    {[](const PatternView& p) {
       return plan::has_groups(p.block_width, p.block_height) ? p.n_block_cols() : 0;
     },
     [](const PatternView& p, const std::int32_t*, std::int32_t* table, Stream stream) {
       return plan::fill_groups(columns_of(p), table, stream);
     }},
    {[](const PatternView& p) {
       return schedule_length(p.n_block_rows(), p.block_height, p.block_width);
     },
     [](const PatternView& p, const std::int32_t* plan, std::int32_t* table, Stream stream) {
       const PlanTable order = plan::has_groups(p.block_height, p.block_width)
                                   ? PlanTable::row_lines
                                   : PlanTable::row_tiles;
       return plan::fill_schedule(rows_of(p), plan_table(p, plan, order), table, stream);
     }},
    {[](const PatternView& p) {
       return schedule_length(p.n_block_cols(), p.block_width, p.block_height);
     },
     [](const PatternView& p, const std::int32_t* plan, std::int32_t* table, Stream stream) {
       const PlanTable order = plan::has_groups(p.block_width, p.block_height)
                                   ? PlanTable::column_lines
                                   : PlanTable::column_tiles;
       return plan::fill_schedule(columns_of(p), plan_table(p, plan, order), table, stream);
     }},
};
static_assert(std::size(kTables) == static_cast<std::size_t>(PlanTable::count));

// Tables begin at whole lines of 128 bytes.
constexpr std::int64_t kAlignment = 32;

// Raised whenever a table changes its length or meaning. The length of a plan
// modulo kVersions is its version, so that a plan which comes from an older
// version (with an exported program, say) is recognised without being read.
constexpr std::int64_t kVersion = 3;
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
    if (kTables[i].length(p) == 0) continue;
    if (Status s = kTables[i].fill(p, plan, table, stream); !s.ok()) return s;
  }
  return {};
}

}  // namespace block_sparse::cuda
