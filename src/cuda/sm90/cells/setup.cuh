// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/sm90/cells/store.cuh"

namespace block_sparse::cuda::sm90::cells {

constexpr int kSetupBarrier = 1;

/// Which panels of one side are touched: a bit each.
struct Panels {
  uint4 low, high;
  __device__ explicit Panels(const unsigned* words)
      : low(reinterpret_cast<const uint4*>(words)[0]),
        high(reinterpret_cast<const uint4*>(words)[1]) {}
  __device__ Panels(const uint4& l, const uint4& h) : low(l), high(h) {}
  __device__ Panels operator&(const Panels& o) const {
    return {uint4{low.x & o.low.x, low.y & o.low.y, low.z & o.low.z, low.w & o.low.w},
            uint4{high.x & o.high.x, high.y & o.high.y, high.z & o.high.z, high.w & o.high.w}};
  }
  /// How many lie before `panel`.
  __device__ __forceinline__ int before(int panel) const {
    const unsigned words[kMaxPanels / 32] = {low.x,  low.y,  low.z,  low.w,
                                             high.x, high.y, high.z, high.w};
    int n = 0;
#pragma unroll
    for (int w = 0; w < kMaxPanels / 32; ++w) {
      const int bits = min(max(panel - w * 32, 0), 32);
      n += __popc(words[w] & static_cast<unsigned>((1ull << bits) - 1));
    }
    return n;
  }
  __device__ int count() const { return before(kMaxPanels); }
};

/// One side of a CTA's stage: its panels, and those among them that both need.
/// Boxes: shared rows, shared columns, own rows, own columns.
template <int Cluster>
struct Side {
  Panels own, both;
  int first_shared = 0;  // panels before the side's, in boxes
  int first_private = 0;

  __device__ Side(const unsigned (&words)[Cluster][kMaxPanels / 32], unsigned rank)
      : own(words[rank]), both(own) {
    if constexpr (Cluster == 1) {
      both = Panels(uint4{}, uint4{});
    } else {
      both = own & Panels(words[rank ^ 1]);
    }
  }
  __device__ int shared_count() const { return both.count(); }
  __device__ int private_count() const { return own.count() - both.count(); }
  __device__ __forceinline__ int box(int panel, bool shared, int boxes) const {
    const int shared_before = both.before(panel);
    return shared ? first_shared + shared_before * boxes
                  : first_private + (own.before(panel) - shared_before) * boxes;
  }
};

/// All threads of the CTA find the cluster's next piece and lay out its stages.
/// False if there is none.
template <class C>
__device__ __forceinline__ bool set_up(const Params& p, Shared<C>& shared, int item, Task* task) {
  const int t = static_cast<int>(threadIdx.x);
  constexpr int kCluster = C::kCluster;
  const unsigned rank = kCluster == 1 ? 0 : ptx::cluster_rank();
  const unsigned other = kCluster == 1 ? 0 : rank ^ 1;
  if (t < 32) {
    Piece piece;
    const bool found = find_piece(p.plane, p.rounds, p.counts, item, &piece);
    if (t == 0) {
      shared.found = found;
      shared.piece = piece;
    }
  } else if (t < 32 + kCluster * kMaxPanels / 32) {
    (&shared.row_panels[0][0])[t - 32] = 0;
    (&shared.column_panels[0][0])[t - 32] = 0;
  }
  ptx::named_barrier(kSetupBarrier, kThreads);  // and the piece before is done with
  if (!shared.found) return false;
  const Piece piece = shared.piece;
  const Unit unit = unit_of(p.plane, piece.unit);
  const int half =
      kCluster == 1 ? piece.count : piece.count / C::kTogether / kCluster * C::kTogether;
  static_assert(C::kPieceCells <= kThreads);
  if (t < piece.count) {
    const Cell cell = p.cells[piece.first + t];
    const int row = cell.row() / C::kPanelRows;
    const int column = cell.column() / C::kPanelColumns;
    const int owner = t < half ? 0 : 1;
    if (cell.slot >= 0) {
      atomicOr(&shared.row_panels[owner][row / 32], 1u << row % 32);
      atomicOr(&shared.column_panels[owner][column / 32], 1u << column % 32);
    }
    shared.cells[t] = cell;
  }
  ptx::named_barrier(kSetupBarrier, kThreads);

  Side<kCluster> rows(shared.row_panels, rank);
  Side<kCluster> columns(shared.column_panels, rank);
  columns.first_shared = rows.shared_count() * C::kRowBoxes;
  const int shared_boxes = columns.first_shared + columns.shared_count() * C::kColumnBoxes;
  rows.first_private = shared_boxes;
  columns.first_private = shared_boxes + rows.private_count() * C::kRowBoxes;
  const int boxes = columns.first_private + columns.private_count() * C::kColumnBoxes;
  const int boxes_there = Panels(shared.row_panels[other]).count() * C::kRowBoxes +
                          Panels(shared.column_panels[other]).count() * C::kColumnBoxes;
  const auto list = [&](const Side<kCluster>& side,
                        const unsigned (&words)[kCluster][kMaxPanels / 32], int side_boxes,
                        int first_feature, bool of_dy) {
    if (!(words[rank][t / 32] >> t % 32 & 1)) return;
    const bool for_both = kCluster > 1 && (words[other][t / 32] >> t % 32 & 1);
    for (int i = 0; i < side_boxes; ++i) {
      const int box = side.box(t, for_both, side_boxes) + i;
      shared.boxes[box] = {first_feature + (t * side_boxes + i) * C::kBox, of_dy,
                           !for_both || box % kCluster == static_cast<int>(rank), for_both};
    }
  };
  if (t < kMaxPanels) {
    list(rows, shared.row_panels, C::kRowBoxes, unit.row0 * C::kHeight, true);
    list(columns, shared.column_panels, C::kColumnBoxes, unit.column0 * C::kWidth, false);
  }

  task->piece = piece;
  task->first = rank == 0 ? 0 : half;
  task->count = rank == 0 ? half : piece.count - half;
  task->boxes = boxes;
  task->box_bytes = p.rounds.stage_tokens * C::kBox * 2;
  task->stage_bytes = max(boxes, boxes_there) * task->box_bytes;
  task->ring_stages = min(kMaxStages, kRingBytes / task->stage_bytes);
  const int part_stages =
      ceil_div(ceil_div(p.rounds.tokens, p.rounds.stage_tokens), p.rounds.parts);
  const int part = p.rounds.parts == 1 ? 0 : static_cast<int>(ptx::cluster_rank());
  task->begin = part * part_stages * p.rounds.stage_tokens;
  task->stages =
      min(part_stages, ceil_div(max(p.rounds.tokens - task->begin, 0), p.rounds.stage_tokens));

  const int units = task->box_bytes / 16;
  const auto in_both = [&](const unsigned (&words)[kCluster][kMaxPanels / 32], int panel) {
    return kCluster > 1 && (words[other][panel / 32] >> panel % 32 & 1) != 0;
  };
  const auto dy_of = [&](int row) {
    const int panel = row / C::kPanelRows;
    return rows.box(panel, in_both(shared.row_panels, panel), C::kRowBoxes) * units +
           row % C::kPanelRows * (C::kHeight * 2 / 16);
  };
  const auto x_of = [&](int column) {
    const int panel = column / C::kPanelColumns;
    return columns.box(panel, in_both(shared.column_panels, panel), C::kColumnBoxes) * units +
           column % C::kPanelColumns * (C::kWidth * 2 / 16);
  };
  const auto target_of = [&](const Cell& cell) {
    return Target{cell.slot, (unit.row0 + cell.row()) % p.plane.down * C::kHeight * p.block_width +
                                 (unit.column0 + cell.column()) % p.plane.across * C::kWidth};
  };
  constexpr int kProducts = Shared<C>::kProducts;
  if (t < C::kWorkers * kProducts) {
    const int worker = t / kProducts;
    const int j = t % kProducts;
    const int begin = task->first + first_cell<C>(*task, worker);
    const int end = task->first + first_cell<C>(*task, worker + 1);
    const int i = begin + j * (C::kPaired ? 2 : 1);
    if constexpr (C::kPaired) {
      PairOperands operands{0, 0};
      if (i < end) {
        Cell low = shared.cells[i];
        Cell high = shared.cells[i + 1];
        if (high.slot < 0) high.place = low.place;
        // The distance between the two must not be negative.
        const auto place_of = [&](const Cell& cell) {
          return C::kByRow ? x_of(cell.column()) : dy_of(cell.row());
        };
        if (place_of(high) < place_of(low)) {
          const Cell first = low;
          low = high;
          high = first;
        }
        const unsigned distance = unsigned(place_of(high) - place_of(low)) << 16;
        operands = {unsigned(dy_of(low.row())) | (C::kByRow ? 0 : distance),
                    unsigned(x_of(low.column())) | (C::kByRow ? distance : 0)};
        shared.targets[worker][2 * j] = target_of(low);
        shared.targets[worker][2 * j + 1] = target_of(high);
      }
      shared.operands[worker][j] = operands;
    } else {
      // Beyond a worker's cells: sums that nobody stores.
      auto& operands = shared.operands[worker][j];
      operands = {0, 0};
      if (i < end) {
        Cell cell = shared.cells[i];
        // A hole reads what its neighbour does.
        if (cell.slot < 0) cell.place = shared.cells[i - j % C::kTogether].place;
        operands.dy = dy_of(cell.row());
        operands.x = x_of(cell.column());
        shared.targets[worker][j] = target_of(cell);
      }
    }
  }
  ptx::named_barrier(kSetupBarrier, kThreads);
  return true;
}

}  // namespace block_sparse::cuda::sm90::cells
