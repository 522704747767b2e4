// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/sm90/wide/work.cuh"

namespace block_sparse::cuda::sm90::wide {

constexpr int kPastEnd = 0x7fffffff;

/// A lane's walk over the blocks of its line; the one after the next is read while the next
/// is waited for.
struct Cursor {
  const Lines& lines;
  int at, end;
  int position, slot;
  int next_position, next_slot;

  __device__ Cursor(const Lines& its_lines, int begin, int its_end)
      : lines(its_lines), at(begin), end(its_end) {
    read(at, position, slot);
    read(at + 1, next_position, next_slot);
  }
  __device__ __forceinline__ void pass() {
    position = next_position;
    slot = next_slot;
    ++at;
    read(at + 1, next_position, next_slot);
  }

 private:
  __device__ __forceinline__ void read(int i, int& its_position, int& its_slot) const {
    its_position = kPastEnd;
    its_slot = 0;
    if (i < end) {
      its_position = lines.others[i];
      its_slot = lines.block_ids[i];
    }
  }
};

/// The warp that walks along K over all lines of a tile at once: which boxes of x are needed,
/// and which blocks go with them. Reads of the index that are waited for are made up for by
/// the steps found ahead.
template <class C>
__device__ void find_loop(const Params& p, Shared<C>& shared) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  ptx::Ring<kSteps> ring;
  const auto put = [&](int bits, const Tile& tile, int k, const int (&slot)[C::kParts]) {
    ptx::barrier_wait(&shared.passed[ring.stage], ring.parity ^ 1);
    Step<C>& step = shared.steps[ring.stage];
    if (lane < C::kTileLines) {
      if (lane == 0) {
        step.bits = bits;
        step.token_tile = tile.token_tile;
        step.k = k;
      }
      step.out0[lane] = tile.out0;
#pragma unroll
      for (int part = 0; part < C::kParts; ++part) {
        step.slots[part * C::kTileLines + lane] = slot[part];
      }
      ptx::barrier_arrive(&shared.found[ring.stage]);
    }
    ring.advance();
  };

  Tiles<C> tiles(p, static_cast<int>(blockIdx.x) / kCluster);
  Tile tile;
  while ((tile = tiles.next()).token_tile >= 0) {
    Cursor line(p.lines, tile.begin, tile.end);
    int position = __reduce_min_sync(~0u, line.position);
    do {
      const int box = position == kPastEnd ? 0 : position / C::kParts;
      int slot[C::kParts];
      int bits = 0;
#pragma unroll
      for (int part = 0; part < C::kParts; ++part) {
        const bool hit = line.position != kPastEnd && line.position == box * C::kParts + part;
        slot[part] = line.slot;
        if (hit) line.pass();
        bits |= static_cast<int>(__ballot_sync(~0u, hit)) << (part * C::kTileLines);
      }
      position = __reduce_min_sync(~0u, line.position);
      put(position == kPastEnd ? bits | kTileEnd : bits, tile, box * C::kParts * p.line_depth,
          slot);
    } while (position != kPastEnd);
  }
  put(kTileEnd | kAllDone, {0, -1, 0, 0}, 0, {});
}

}  // namespace block_sparse::cuda::sm90::wide
