// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

#include "cuda/common/device.h"
#include "cuda/sm90/cells/kernel.cuh"
#include "cuda/sm90/cells/layout.h"
#include "cuda/sm90/cells/prepare.cuh"

namespace block_sparse::cuda::sm90::cells {

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
  auto* cells = reinterpret_cast<Cell*>(reinterpret_cast<char*>(counts) + l.counts_bytes);
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
  const int clusters = l.clusters();
  const auto max_slabs = static_cast<int>(
      std::min<std::size_t>((a.workspace.bytes - l.all_bytes(0)) / l.slab_bytes, 2 * clusters));
  const Rounds rounds{
      clusters,   static_cast<int>(a.tokens),     t.stage_tokens, C::kPieceCells, t.unit_pieces,
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
  s = launch_dependent(kernel<C>, static_cast<unsigned>(C::kCluster * clusters), kThreads, kBytes,
                       stream, params, dy_map, x_map);
  if (s.ok() && max_slabs > 0) {
    s = launch_dependent(finish_kernel<C>, static_cast<unsigned>(clusters * kFinishCtas),
                         kFinishThreads, 0, stream, params);
  }
  return s;
}

template <class Element, int Height, int Width>
Status launch_cluster(const WeightGradientArgs& a, const Layout& l, Stream stream) {
  if constexpr (may_share(Height, Width)) {
    if (l.tiling.cluster == 2) return launch<Config<Element, Height, Width, 2>>(a, l, stream);
  }
  return launch<Config<Element, Height, Width, 1>>(a, l, stream);
}

template <class Element>
Status launch_cell(const WeightGradientArgs& a, const Layout& l, Stream stream) {
  switch (l.cell.height * 256 + l.cell.width) {
    case 128 * 256 + 128:
      return launch_cluster<Element, 128, 128>(a, l, stream);
    case 64 * 256 + 64:
      return launch_cluster<Element, 64, 64>(a, l, stream);
    case 32 * 256 + 32:
      return launch_cluster<Element, 32, 32>(a, l, stream);
    case 32 * 256 + 16:
      return launch_cluster<Element, 32, 16>(a, l, stream);
    case 16 * 256 + 32:
      return launch_cluster<Element, 16, 32>(a, l, stream);
    default:
      return launch_cluster<Element, 16, 16>(a, l, stream);
  }
}

}  // namespace block_sparse::cuda::sm90::cells
