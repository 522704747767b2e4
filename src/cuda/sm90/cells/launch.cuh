// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

#include "cuda/common/device.h"
#include "cuda/sm90/cells/kernel.cuh"
#include "cuda/sm90/cells/layout.h"
#include "cuda/sm90/cells/prepare.cuh"

namespace block_sparse::cuda::sm90::cells {

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
                    C::kTogether};
  const Rounds rounds{l.clusters(),   static_cast<int>(a.tokens),
                      t.stage_tokens, C::kPieceCells,
                      t.unit_pieces,  t.parts};
  const Params params{
      plane,
      rounds,
      cells,
      counts,
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

  // It starts while the lists are made.
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {static_cast<unsigned>(C::kCluster * t.parts), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>(C::kCluster * t.parts * rounds.clusters);
  config.blockDim = kThreads;
  config.dynamicSmemBytes = kBytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  return to_status(cudaLaunchKernelEx(&config, kernel<C>, params, dy_map, x_map),
                   "launching the Hopper weight gradient kernel");
}

template <class Element, CellKind Kind>
Status launch_cluster(const WeightGradientArgs& a, const Layout& l, Stream stream) {
  if constexpr (Kind.may_share()) {
    if (l.tiling.cluster == 2) return launch<Config<Element, Kind, 2>>(a, l, stream);
  }
  return launch<Config<Element, Kind, 1>>(a, l, stream);
}

template <class Element>
Status launch_cell(const WeightGradientArgs& a, const Layout& l, Stream stream) {
  const CellKind& cell = l.cell;
  switch (cell.height * 256 + cell.width) {
    case 128 * 256 + 128:
      return launch_cluster<Element, CellKind{128, 128, 1}>(a, l, stream);
    case 64 * 256 + 64:
      return cell.together == 2 ? launch_cluster<Element, CellKind{64, 64, 2}>(a, l, stream)
                                : launch_cluster<Element, CellKind{64, 64, 1}>(a, l, stream);
    case 32 * 256 + 32:
      return launch_cluster<Element, CellKind{32, 32, 2}>(a, l, stream);
    case 32 * 256 + 16:
      return launch_cluster<Element, CellKind{32, 16, 1}>(a, l, stream);
    case 16 * 256 + 32:
      return launch_cluster<Element, CellKind{16, 32, 1}>(a, l, stream);
    default:
      switch (cell.together) {
        case 4:
          return launch_cluster<Element, CellKind{16, 16, 4}>(a, l, stream);
        case 2:
          return launch_cluster<Element, CellKind{16, 16, 2}>(a, l, stream);
        default:
          return launch_cluster<Element, CellKind{16, 16, 1}>(a, l, stream);
      }
  }
}

}  // namespace block_sparse::cuda::sm90::cells
