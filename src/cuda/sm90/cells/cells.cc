// SPDX-License-Identifier: Apache-2.0
#include "cuda/sm90/cells/cells.h"

#include <algorithm>
#include <limits>

#include "cuda/common/device.h"
#include "cuda/sm90/cells/layout.h"
#include "cuda/sm90/cells/plane.h"

namespace block_sparse::cuda::sm90::cells {
namespace {

/// The sides of the cells that blocks are cut into.
int cell_side(std::int64_t side, bool both_128, bool both_64) {
  return both_128 ? 128 : both_64 ? 64 : side % 32 == 0 ? 32 : 16;
}

Layout layout_of(const WeightGradientArgs& a, const Device& device) {
  const PatternView& w = a.pattern;
  const auto both = [&](int side) {
    return w.block_height % side == 0 && w.block_width % side == 0;
  };
  const int height = cell_side(w.block_height, both(128), both(64));
  const int width = cell_side(w.block_width, both(128), both(64));
  const auto rows = static_cast<int>(w.rows / height);
  const auto columns = static_cast<int>(w.cols / width);
  const std::int64_t in_block = w.block_height * w.block_width / (height * width);
  const std::int64_t stored = std::min(w.slots * in_block, std::int64_t(rows) * columns);
  Layout l;
  l.problem = {rows,
               columns,
               height,
               width,
               static_cast<int>(stored),
               static_cast<int>(a.tokens),
               device.multiprocessors};
  l.tiling = choose_tiling(l.problem);
  l.cell = {height, width, l.tiling.together};
  const auto aligned = [](std::size_t bytes) { return (bytes + 255) / 256 * 256; };
  const auto units = static_cast<std::size_t>(l.tiling.groups) * l.tiling.segments;
  l.counts_bytes = aligned(units * sizeof(int));
  Plane plane{};
  plane.rows = rows;
  plane.columns = columns;
  plane.groups = l.tiling.groups;
  plane.segments = l.tiling.segments;
  plane.by_row = l.tiling.by_row;
  plane.together = l.cell.together;
  l.cells_bytes = aligned(static_cast<std::size_t>(listed_cells(plane)) * sizeof(Cell));
  return l;
}

}  // namespace

const char* refusal(const WeightGradientArgs& a) {
  const PatternView& w = a.pattern;
  if (a.dtype != DataType::bf16 && a.dtype != DataType::f16) return "not a 16-bit type";
  if (w.block_height % 16 != 0 || w.block_width % 16 != 0) {
    return "a side of the blocks is not a multiple of 16";
  }
  if (w.rows % w.block_height != 0 || w.cols % w.block_width != 0) {
    return "features are not whole blocks";
  }
  if (w.rows < 1 || w.cols < 1) return "there are no features";
  if (a.tokens < 1 || a.tokens > 0x7fff0000) return "no tokens, or too many";
  if (std::max(w.rows, w.cols) / kBoxFeatures >= kMaxSidePanels ||
      w.rows / 16 * (w.cols / 16) > 0x7fffffff) {
    return "the matrix is too large";
  }
  if (w.block_height * w.block_width > 0x7fffffff) return "the blocks are too large";
  for (const void* data : {a.dy, a.x, static_cast<const void*>(a.dvalues)}) {
    if (const char* why = tensor_map_refusal(data, 0)) return why;
  }
  for (const std::int64_t stride : {a.lddy, a.ldx}) {
    if (const char* why = tensor_map_refusal(nullptr, stride)) return why;
  }
  Device device;
  if (!current_device(&device).ok()) return "there is no device";
  const Layout l = layout_of(a, device);
  if (a.workspace.bytes < l.counts_bytes + l.cells_bytes) {
    return "there is too little workspace";
  }
  return nullptr;
}

Status run(const WeightGradientArgs& a, Stream stream) {
  Device device;
  if (Status s = current_device(&device); !s.ok()) return s;
  const Layout l = layout_of(a, device);
  return a.dtype == DataType::bf16 ? launch_bf16(a, l, stream) : launch_f16(a, l, stream);
}

std::size_t workspace(const WeightGradientArgs& a) {
  Device device;
  if (!current_device(&device).ok()) return 0;
  const Layout l = layout_of(a, device);
  return l.counts_bytes + l.cells_bytes;
}

}  // namespace block_sparse::cuda::sm90::cells
