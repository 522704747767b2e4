// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/ptx/tma.cuh"
#include "cuda/ptx/wgmma.cuh"
#include "cuda/sm90/decode/config.cuh"

namespace block_sparse::cuda::sm90::decode {

/// The products of a CTA. A stage is a box of W and one of x.
template <class C>
struct Product {
  static constexpr int kWBytes = kOuts * kStageK * 2;
  static constexpr int kStageBytes = C::kXBytes + kWBytes;
  static constexpr int kStages = 81920 / kStageBytes;

  struct Shared {
    alignas(1024) unsigned char stages[kStages][kStageBytes];
    alignas(8) std::uint64_t full[kStages];
    alignas(8) std::uint64_t empty[kStages];
  };

  const SpmmProblem& p;
  const Work& work;
  Shared& shared;
  int begin = 0;   // of the line's blocks
  int stages = 0;  // of the line

  __device__ __forceinline__ unsigned char* x(int stage) { return shared.stages[stage]; }
  __device__ __forceinline__ unsigned char* w(int stage) {
    return shared.stages[stage] + C::kXBytes;
  }

  /// By all threads.
  __device__ __forceinline__ void look_up() {
    const int line = work.out0 / static_cast<int>(p.height);
    begin = p.lines.pointers[line];
    stages = (p.lines.pointers[line + 1] - begin) * (static_cast<int>(p.width) / kStageK);
  }

  /// By a warp, of which each lane loads every 32nd stage.
  __device__ __forceinline__ void load(const CUtensorMap* x_map, const CUtensorMap* w_map) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int height = static_cast<int>(p.height);
    const int width = static_cast<int>(p.width);
    const int a_block = width / kStageK;
    const int m0 = work.out0 % height;
    int other = 0, id = 0;
    const auto find = [&](int s) {
      if (s < stages) {
        other = p.lines.others[begin + s / a_block];
        id = p.lines.block_ids[begin + s / a_block];
      }
    };
    ptx::Ring<kStages> ring;
    find(work.rank + lane * work.ctas);
    for (int first = work.rank; first < stages; first += 32 * work.ctas) {
      const int s = first + lane * work.ctas;
      const int k = s % a_block * kStageK;
      const int x_col = other * width + k;
      const int w_row = C::kMContiguous ? id * width + k : id * height + m0;
      const int w_col = C::kMContiguous ? m0 : k;
      find(s + 32 * work.ctas);
      for (int turn = 0; turn < 32 && first + turn * work.ctas < stages; ++turn) {
        if (lane == turn) {
          ptx::barrier_wait(&shared.empty[ring.stage], ring.parity ^ 1);
          std::uint64_t* full = &shared.full[ring.stage];
          ptx::barrier_arrive_expect(full, kStageBytes);
          ptx::load_box(w_map, w(ring.stage), full, w_row, w_col);
          ptx::load_box(x_map, x(ring.stage), full, 0, x_col);
        }
        __syncwarp();
        ring.advance();
      }
    }
  }

  /// By a warpgroup: d += the products of this CTA's stages.
  __device__ __forceinline__ void multiply(float (&d)[C::kTokens / 2]) {
    using Mma = ptx::Wgmma<typename C::Element, C::kTokens>;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    ptx::Ring<kStages> ring;
    int in_flight = -1;
    for (int s = work.rank; s < stages; s += work.ctas) {
      const int stage = ring.stage;
      ptx::barrier_wait(&shared.full[stage], ring.parity);
      ring.advance();
      const std::uint32_t x_at = ptx::shared_address(x(stage));
      const std::uint32_t w_at = ptx::shared_address(w(stage));
      ptx::wgmma_fence(d);
      ptx::wgmma_begin();
#pragma unroll
      for (int step = 0; step < kStageK / 16; ++step) {
        const std::uint64_t a = ptx::operand<128>(w_at + step * (C::kMContiguous ? 16 * 128 : 32));
        Mma::template shared<C::kMContiguous, false>(d, a, ptx::operand<128>(x_at + step * 32));
      }
      ptx::wgmma_commit();
      ptx::wgmma_fence(d);
      ptx::wgmma_wait<1>();
      if (in_flight >= 0 && lane == 0) ptx::barrier_arrive(&shared.empty[in_flight]);
      in_flight = stage;
    }
    ptx::wgmma_wait<0>();
    ptx::wgmma_fence(d);
  }
};

}  // namespace block_sparse::cuda::sm90::decode
