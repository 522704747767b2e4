// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <limits>

#include "cuda/common/device.h"
#include "cuda/sm90/cells/cells.h"
#include "cuda/sm90/cells/kernel.cuh"
#include "cuda/sm90/cells/prepare.cuh"
#include "cuda/sm90/cells/tiling.h"

namespace block_sparse::cuda::sm90::cells {
namespace {

/// Sides of the cells that blocks are cut into.
struct CellShape {
  int height, width;
  constexpr int elements() const { return height * width; }
};
CellShape cell_of(const PatternView& w) {
  const auto both = [&](int side) {
    return w.block_height % side == 0 && w.block_width % side == 0;
  };
  if (both(128)) return {128, 128};
  if (both(64)) return {64, 64};
  return {w.block_height % 32 == 0 ? 32 : 16, w.block_width % 32 == 0 ? 32 : 16};
}

/// What a call does, without pointers.
struct Layout {
  CellShape cell;
  TilingProblem problem;
  Tiling tiling;
  std::size_t counts_bytes, cells_bytes, slab_bytes;
  /// Up to two rounds of parts are split.
  std::size_t all_bytes(int slabs) const { return counts_bytes + cells_bytes + slabs * slab_bytes; }
};
Layout layout_of(const WeightGradientArgs& a, const Device& device) {
  const PatternView& w = a.pattern;
  const CellShape cell = cell_of(w);
  const auto rows = static_cast<int>(w.rows / cell.height);
  const auto columns = static_cast<int>(w.cols / cell.width);
  const std::int64_t in_block = w.block_height * w.block_width / cell.elements();
  const std::int64_t stored = std::min(w.slots * in_block, std::int64_t(rows) * columns);
  Layout l;
  l.cell = cell;
  l.problem = {rows,
               columns,
               cell.height,
               cell.width,
               kCluster * capacity(cell.height, cell.width),
               static_cast<int>(stored),
               static_cast<int>(a.tokens),
               device.multiprocessors / kCluster};
  l.tiling = choose_tiling(l.problem);
  const auto aligned = [](std::size_t bytes) { return (bytes + 255) / 256 * 256; };
  const auto units = static_cast<std::size_t>(l.tiling.groups) * l.tiling.segments;
  l.counts_bytes = aligned(units * sizeof(int));
  const int holes = are_paired(cell.height, cell.width) ? l.tiling.groups : 0;
  l.cells_bytes = aligned(static_cast<std::size_t>(rows + holes) * columns * sizeof(Cell));
  l.slab_bytes = l.problem.capacity * static_cast<std::size_t>(cell.elements()) * sizeof(float);
  return l;
}

/// Starts while the kernel before ends.
template <class... Parameters, class... Arguments>
Status launch_dependent(void (*kernel)(Parameters...), unsigned ctas, int threads, int bytes,
                        Stream stream, const Arguments&... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = ctas;
  config.blockDim = static_cast<unsigned>(threads);
  config.dynamicSmemBytes = static_cast<std::size_t>(bytes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return to_status(cudaLaunchKernelEx(&config, kernel, arguments...),
                   "launching the Hopper weight gradient kernel");
}

template <class C>
Status launch(const WeightGradientArgs& a, const Layout& l, Stream stream) {
  const PatternView& w = a.pattern;
  const Tiling& t = l.tiling;
  const bool is_bf16 = a.dtype == DataType::bf16;
  CUtensorMap dy_map, x_map;
  Status s =
      make_tensor_map({a.dy, a.tokens, w.rows, a.lddy, t.stage_tokens, C::kBox, is_bf16}, &dy_map);
  if (s.ok()) {
    s = make_tensor_map({a.x, a.tokens, w.cols, a.ldx, t.stage_tokens, C::kBox, is_bf16}, &x_map);
  }
  constexpr int kBytes = sizeof(Shared<C>) + 1024;  // room to align
  if (s.ok()) s = allow_shared_memory(kernel<C>, kBytes);
  if (!s.ok()) return s;

  auto* counts = static_cast<int*>(a.workspace.data);
  auto* cells = reinterpret_cast<Cell*>(static_cast<char*>(a.workspace.data) + l.counts_bytes);
  auto* slabs = reinterpret_cast<float*>(reinterpret_cast<char*>(cells) + l.cells_bytes);
  const Plane plane{w.crow_indices,
                    w.col_indices,
                    w.block_ids,
                    l.problem.rows,
                    l.problem.columns,
                    static_cast<int>(w.block_height / C::kHeight),
                    static_cast<int>(w.block_width / C::kWidth),
                    C::kPanelRows,
                    C::kPanelColumns,
                    t.groups,
                    t.segments,
                    t.by_row,
                    C::kPaired};
  const int clusters = l.problem.clusters;
  const auto max_slabs = static_cast<int>(
      std::min<std::size_t>((a.workspace.bytes - l.all_bytes(0)) / l.slab_bytes, 2 * clusters));
  const Rounds rounds{clusters,   static_cast<int>(a.tokens),     t.stage_tokens, C::kPieceCells,
                      t.piece_ns, static_cast<int>(l.slab_bytes), max_slabs};
  const Params params{
      plane,
      rounds,
      cells,
      counts,
      slabs,
      {a.dvalues, nullptr, w.slots, static_cast<int>(w.block_height * w.block_width),
       a.out_dtype == DataType::f32, a.accumulate},
      static_cast<int>(w.block_width)};
  const SpareSlots spare{
      a.accumulate ? nullptr : a.dvalues, w.slots,
      w.block_height * w.block_width * static_cast<std::int64_t>(size_of(a.out_dtype)),
      w.crow_indices + w.n_block_rows()};
  prepare_kernel<<<static_cast<unsigned>(plane.units()), kPrepareThreads, 0, stream>>>(
      plane, spare, cells, counts);
  s = to_status(cudaGetLastError(), "launching prepare_kernel");
  if (!s.ok()) return s;
  s = launch_dependent(kernel<C>, static_cast<unsigned>(kCluster * clusters), kThreads, kBytes,
                       stream, params, dy_map, x_map);
  if (s.ok() && max_slabs > 0) {
    s = launch_dependent(finish_kernel<C>, static_cast<unsigned>(clusters * kFinishCtas),
                         kFinishThreads, 0, stream, params);
  }
  return s;
}

template <class Element>
Status launch_cell(const WeightGradientArgs& a, const Layout& l, Stream stream) {
  switch (l.cell.height * 256 + l.cell.width) {
    case 128 * 256 + 128:
      return launch<Config<Element, 128, 128>>(a, l, stream);
    case 64 * 256 + 64:
      return launch<Config<Element, 64, 64>>(a, l, stream);
    case 32 * 256 + 32:
      return launch<Config<Element, 32, 32>>(a, l, stream);
    case 32 * 256 + 16:
      return launch<Config<Element, 32, 16>>(a, l, stream);
    case 16 * 256 + 32:
      return launch<Config<Element, 16, 32>>(a, l, stream);
    default:
      return launch<Config<Element, 16, 16>>(a, l, stream);
  }
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
  if (a.workspace.bytes < layout_of(a, device).all_bytes(0)) return "there is too little workspace";
  return nullptr;
}

Status run(const WeightGradientArgs& a, Stream stream) {
  Device device;
  if (Status s = current_device(&device); !s.ok()) return s;
  const Layout l = layout_of(a, device);
  return a.dtype == DataType::bf16 ? launch_cell<bf16>(a, l, stream)
                                   : launch_cell<f16>(a, l, stream);
}

std::size_t workspace(const WeightGradientArgs& a) {
  Device device;
  if (!current_device(&device).ok()) return 0;
  return layout_of(a, device).all_bytes(2 * (device.multiprocessors / kCluster));
}

}  // namespace block_sparse::cuda::sm90::cells
