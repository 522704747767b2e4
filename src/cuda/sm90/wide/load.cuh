// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/ptx/tma.cuh"
#include "cuda/sm90/wide/config.cuh"

namespace block_sparse::cuda::sm90::wide {

/// The warp that fills the ring. The tokens are the CTA's own; each block is loaded by one
/// CTA of the cluster for both. Lane i is concerned with block i of a step.
template <class C>
struct Loader {
  const Params& p;
  const CUtensorMap* x_map;
  const CUtensorMap* w_map;
  Shared<C>& shared;
  const int rank = static_cast<int>(ptx::cluster_rank());
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int consumer = lane % C::kTileLines / C::kLines;  // for whom block `lane` is
  ptx::Ring<C::kStages> ring{};

  /// A step as the lanes know it.
  struct Lane {
    int bits, token0, k;  // of all
    int out0;             // lane i: of line i
    int slot;             // lane i: of block i, where there is one
  };

  __device__ void load_block(const Lane& step, int along_k) {
    int row = step.slot * C::kWRows, col = 0;
    if constexpr (C::kSide == 64) {
      const int offset = step.out0 % p.line_height;
      row =
          C::kMContiguous ? step.slot * p.line_depth + along_k : step.slot * p.line_height + offset;
      col = C::kMContiguous ? offset : along_k;
    }
    ptx::load_box_multicast(w_map, shared.w(ring.stage, lane), &shared.full[ring.stage], row, col,
                            (1 << kCluster) - 1);
  }

  /// As much of K as a stage holds; `along_k` within deeper blocks.
  __device__ void load(const Lane& step, int along_k, bool ends) {
    const int stage = ring.stage;
    ptx::barrier_wait(&shared.empty[stage], ring.parity ^ 1);
    StageMeta<C>& meta = shared.meta[stage];
    if (ends) {
#pragma unroll
      for (int l = 0; l < C::kTileLines; ++l) {
        const int out0 = __shfl_sync(~0u, step.out0, l);
        if (lane == 0) meta.out0[l] = out0;
      }
    }
    const int blocks = step.bits & kBlockBits;
    if (lane == 0) {
      meta.bits = ends ? step.bits : blocks;
      meta.token0 = step.token0;
      if (blocks == 0) {
        ptx::barrier_arrive(&shared.full[stage]);
      } else {
        ptx::barrier_arrive_expect(&shared.full[stage],
                                   C::kXBytes + __popc(blocks) * C::kBlockBytes);
        ptx::load_box(x_map, shared.x(stage), &shared.full[stage], step.token0, step.k + along_k);
      }
    }
    __syncwarp();
    if ((blocks >> lane & 1) != 0 && consumer == rank) load_block(step, along_k);
    ring.advance();
  }

  __device__ void run() {
    ptx::Ring<kSteps> found;
    for (;;) {
      ptx::barrier_wait(&shared.found[found.stage], found.parity);
      const Step<C>& from = shared.steps[found.stage];
      Lane step;
      step.bits = __shfl_sync(~0u, lane == 0 ? from.bits : 0, 0);
      step.token0 =
          (__shfl_sync(~0u, lane == 0 ? from.token_tile : 0, 0) * kCluster + rank) * C::kTokens;
      step.k = __shfl_sync(~0u, lane == 0 ? from.k : 0, 0);
      step.out0 = lane < C::kTileLines ? from.out0[lane] : 0;
      step.slot = -1;
      if (lane < C::kBlocks) {
        step.slot = from.slots[lane];
        ptx::barrier_arrive(&shared.passed[found.stage]);
      }
      found.advance();
      if ((step.bits & kBlockBits) == 0) {
        load(step, 0, true);
      } else {
        for (int along_k = 0; along_k < p.line_depth; along_k += C::kStageK) {
          load(step, along_k, along_k + C::kStageK >= p.line_depth && step.bits >= kTileEnd);
        }
      }
      if (step.bits & kAllDone) break;
    }
  }
};

}  // namespace block_sparse::cuda::sm90::wide
