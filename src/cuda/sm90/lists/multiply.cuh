// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/ptx/wgmma.cuh"
#include "cuda/sm90/lists/config.cuh"
#include "cuda/sm90/lists/store.cuh"

namespace block_sparse::cuda::sm90::lists {

/// A consumer warpgroup: D (128 tokens x 128 outputs), whose place in the registers
/// never depends on the pattern: only which products are added to it does.
template <class C>
struct Multiplier {
  using Mma = ptx::Wgmma<typename C::Element, C::kHeight>;
  static constexpr int kSteps = C::kDepth / 16;  // wgmmas of a block and 64 tokens
  static constexpr int kStepBytes = C::kNContiguous ? 16 * C::kBlockRowBytes : 32;

  const Params& p;
  Shared<C>& shared;
  const int consumer;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  // What a lane arrives at to give back x, which every CTA of the cluster loads, and a
  // batch: lanes beyond the first few at nothing.
  const bool gives_x = lane < C::kCluster;
  const bool gives = lane <= C::kCluster;
  const std::uint32_t empty =
      gives_x ? ptx::cluster_address(shared.x_empty, lane)
              : ptx::cluster_address(shared.empty, C::kCluster == 1 ? 0 : ptx::cluster_rank());
  StageRing ring{};
  int number = 0;     // of the next batch
  bool held = false;  // there is what products in flight may read
  int mine = 0;       // of it, what this lane gives back: a stage or a batch, or -1
  Sums<C> d;

  __device__ __forceinline__ void fence() {
#pragma unroll
    for (auto& tile : d) {
#pragma unroll
      for (auto& row : tile) ptx::wgmma_fence(row);
    }
  }

  __device__ __forceinline__ void release() {
    __syncwarp();
    if (gives && mine >= 0) ptx::barrier_arrive_at(empty + mine * 8);
    held = false;
  }
  /// Waits for all products and gives back what they read, if anything.
  __device__ __forceinline__ void finish() {
    ptx::wgmma_wait<0>();
    if (held) release();
  }

  /// The products with the blocks of a list: row after row, so that each wgmma's sums
  /// are known when this is compiled. Those of one block run while the next is begun.
  __device__ __forceinline__ void multiply(std::uint64_t x, std::uint64_t blocks,
                                           const List<C>& list) {
    // In units of 16 bytes: from a part to the next in a box, and from a box to the next.
    constexpr unsigned kPart = C::kDepth * 2 / 16;
    constexpr unsigned kBox = kBoxBytes / 16;
    constexpr unsigned kInBox = kBoxK / C::kDepth;
    constexpr unsigned kBits = kPart * (kInBox - 1) | kBox;
    int place = static_cast<int>(list.first & ~List<C>::kMore);
#pragma unroll
    for (int row = 0; row < C::kRows; ++row) {
      unsigned left = list.rows[row / 4] >> (row % 4 * 8) & 0xff;
      while (left != 0) {
        const auto part = static_cast<unsigned>(__ffs(static_cast<int>(left)) - 1);
        left &= left - 1;
        const unsigned units = (part * kPart | part * (kBox / kInBox)) & kBits;
        const std::uint64_t a = ptx::advanced(x, units * 16);
        const std::uint64_t b = ptx::advanced(blocks, place * C::kBlockBytes);
        place = place + 1 == p.blocks ? 0 : place + 1;
        ptx::wgmma_begin();
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
#pragma unroll
          for (int tile = 0; tile < 2; ++tile) {
            Mma::template shared<false, C::kNContiguous>(
                d[tile][row], ptx::advanced(a, tile * (kBoxBytes / 2) + step * 32),
                ptx::advanced(b, step * kStepBytes));
          }
        }
        ptx::wgmma_commit();
        ptx::wgmma_wait<1>();
        if (held) release();
      }
    }
  }

  /// Sums over all stages of a tile.
  __device__ __forceinline__ void run() {
#pragma unroll
    for (auto& tile : d) {
#pragma unroll
      for (auto& row : tile) {
#pragma unroll
        for (float& v : row) v = 0;
      }
    }
    const std::uint32_t x0 = ptx::shared_address(shared.ring);
    const std::uint64_t x = ptx::operand<128>(x0);
    const std::uint64_t blocks = ptx::operand<C::kBlockRowBytes>(x0 + p.stages * kStageBytes);
    fence();
    for (int chunk = 0; chunk < p.chunks; ++chunk) {
      wait(&shared.x_full[ring.stage], ring.parity);
      bool more = false;
      do {
        wait(&shared.full[number % kBatches], number / kBatches & 1);
        List<C> list = shared.lists[number % kListed][consumer];
#pragma unroll
        for (unsigned& rows : list.rows) rows = __shfl_sync(~0u, rows, 0);
        list.first = __shfl_sync(~0u, list.first, 0);
        more = list.first & List<C>::kMore;
        ptx::wgmma_see_shared();
        multiply(ptx::advanced(x, ring.stage * kStageBytes), blocks, list);
        if (held) finish();  // there was no block
        held = true;
        mine = !gives_x ? number % kBatches : more ? -1 : ring.stage;
        ++number;
      } while (more);
      ring.advance(p.stages);
    }
    finish();
    fence();
  }

  /// What is held must be given back where the next waits for its room.
  __device__ __forceinline__ void wait(std::uint64_t* full, unsigned parity) {
    if (ptx::barrier_test(full, parity)) return;
    finish();
    ptx::barrier_wait(full, parity);
  }
};

template <class C>
__device__ void multiply_loop(const Params& p, Shared<C>& shared) {
  Multiplier<C> multiplier{p, shared, __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 128 - 1, 0)};
  for_each_tile<C>(p, [&](int first_segment, int token0) {
    multiplier.run();
    SumStore<C>(p, multiplier.d, first_segment + multiplier.consumer * (kConsumerOuts / kOuts),
                token0)();
  });
}

}  // namespace block_sparse::cuda::sm90::lists
