// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/ptx/matrix.cuh"
#include "cuda/ptx/tma.cuh"
#include "cuda/ptx/wgmma.cuh"
#include "cuda/sm90/spmm/config.cuh"

namespace block_sparse::cuda::sm90::spmm {

/// A consumer warpgroup: D (64 outputs x tokens) of its tile.
template <class C>
struct Multiplier {
  using Element = typename C::Element;
  using Mma = ptx::Wgmma<Element, C::kTokens>;
  static constexpr int kSteps = C::kSide / 16;  // wgmmas of a part
  using Fragments = std::uint32_t[C::kParts * kSteps][4];

  Shared<C>& shared;
  const int consumer;
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  ptx::Ring<C::kStages> ring{};
  int in_flight = -1;  // the stage that the last wgmmas read
  float d[C::kTokens / 2];

  /// Tells every CTA of the cluster, as each may load weights into this one. The
  /// lanes that do not arrive have finished their reads, too.
  __device__ void release(int stage) const {
    __syncwarp();
    if (lane == 0) {
      ptx::barrier_arrive(&shared.empty[stage]);
    } else if (lane < kCluster) {
      ptx::barrier_arrive_cluster(&shared.empty[stage], (ptx::cluster_rank() + lane) % kCluster);
    }
  }

  /// What a stage holds, the same in all lanes. Only the lane that tells this CTA of the
  /// release reads it, as racecheck follows no other to the barrier.
  struct Present {
    unsigned words[(C::kParts + 1) / 2];  // two parts each
    __device__ __forceinline__ unsigned part(int i) const {
      return words[i / 2] >> (i % 2 * 16) & 0xffff;
    }
  };
  __device__ __forceinline__ Present present_in(int stage) const {
    const auto* from = reinterpret_cast<const unsigned*>(shared.meta[stage].parts);
    Present present;
#pragma unroll
    for (int i = 0; i < (C::kParts + 1) / 2; ++i) {
      present.words[i] = __shfl_sync(~0u, lane == 0 ? from[i] : 0, 0);
    }
    return present;
  }

  /// The part's lines present in this warpgroup's tile.
  __device__ __forceinline__ unsigned lines_in(const Present& present, int part) const {
    return present.part(part) >> (consumer * C::kLines) & ((1u << C::kLines) - 1);
  }

  __device__ __forceinline__ std::uint64_t x_operand(int stage, int part, int step) const {
    const int in_box = part % C::kGroup * C::kSide * 2;
    return ptx::operand<C::kXDepth * 2>(ptx::shared_address(shared.x(stage, part / C::kGroup)) +
                                        in_box + step * 32);
  }

  /// A warp's 16 outputs lie in one block, which is either read
  /// into registers or, when it is not stored, zero there.
  __device__ __forceinline__ void load_weights(int stage, const Present& present,
                                               Fragments& a) const {
    const int line = warp * 16 / C::kSide;
    const int offset = warp * 16 % C::kSide;
    const int low = lane % 8;
    const int bit3 = lane / 8 % 2;
    const int bit4 = lane / 16;
#pragma unroll
    for (int part = 0; part < C::kParts; ++part) {
      const bool stored = lines_in(present, part) >> line & 1;
      const std::uint32_t block =
          ptx::shared_address(shared.w(stage, part, consumer)) + line * C::kBlockBytes;
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        std::uint32_t (&r)[4] = a[part * kSteps + step];
        if (stored) {
          if constexpr (C::kMContiguous) {
            const int at = (step * 16 + low + bit4 * 8) * C::kSide * 2 + offset * 2 + bit3 * 16;
            ptx::load_matrix_x4_transposed(r, ptx::swizzled<128>(0, block + at));
          } else {
            const int at = (offset + low + bit3 * 8) * C::kSide * 2 + step * 32 + bit4 * 16;
            ptx::load_matrix_x4(r, ptx::swizzled<128>(0, block + at));
          }
        } else {
          r[0] = r[1] = r[2] = r[3] = 0;
        }
      }
    }
  }

  /// Each part is one straight run of wgmmas from fence to commit: ptxas
  /// serialises them where a branch lies in between.
  __device__ __forceinline__ void multiply_registers(int stage, const Present& present,
                                                     const Fragments& a) {
#pragma unroll
    for (int part = 0; part < C::kParts; ++part) {
      if (lines_in(present, part) == 0) continue;
      ptx::wgmma_fence(d);
      ptx::wgmma_begin();
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        Mma::template registers<false>(d, a[part * kSteps + step], x_operand(stage, part, step));
      }
      ptx::wgmma_commit();
      ptx::wgmma_fence(d);
    }
  }

  /// The fragments were read until here: wgmma does so after it was issued.
  static __device__ __forceinline__ void keep(Fragments& a) {
#pragma unroll
    for (auto& part : a) {
#pragma unroll
      for (std::uint32_t& r : part) asm volatile("" : "+r"(r)::"memory");
    }
  }

  /// Waits for all products in flight and gives back the stage they read, if any.
  __device__ __forceinline__ void finish() {
    ptx::wgmma_wait<0>();
    if (in_flight >= 0) release(in_flight);
    in_flight = -1;
  }

  /// Adds the ring's next stage; true if it is the tile's last. Fragments are
  /// loaded into `now` while the products from `before` run.
  __device__ __forceinline__ bool add_stage(Fragments& now, Fragments& before) {
    const int stage = ring.stage;
    ptx::barrier_wait(&shared.full[stage], ring.parity);
    const Present present = present_in(stage);
    ring.advance();
    load_weights(stage, present, now);
    finish();
    keep(before);
    multiply_registers(stage, present, now);
    in_flight = stage;
    return present.part(C::kParts - 1) & StageMeta::kLast;
  }

  /// Sums over all stages of a tile.
  __device__ __forceinline__ void run() {
#pragma unroll
    for (float& v : d) v = 0;
    Fragments a, b;
    while (!add_stage(a, b) && !add_stage(b, a)) {
    }
    finish();
    ptx::wgmma_fence(d);
  }
};

template <class C>
__device__ void multiply_loop(const Params& p, Shared<C>& shared) {
  Multiplier<C> multiplier{shared, static_cast<int>(threadIdx.x) / 128 - 1};
  const TileStore<typename C::Element, C::kTokens> store{
      p.output, shared.stores[multiplier.consumer], 1 + multiplier.consumer};
  const int rank = static_cast<int>(ptx::cluster_rank());
  const int items = pairs_of(p) * p.token_tiles;
  for (int item = blockIdx.x / kCluster; item < items; item += gridDim.x / kCluster) {
    const Work work = work_of(p, item);
    const int segment = work.pair * kConsumers + multiplier.consumer;
    multiplier.run();
    if (segment < p.segments) {
      const Segment place = segment_of(p.lines, C::kSide, segment);
      store(multiplier.d, place.line * C::kSide, (work.token_tile * kCluster + rank) * C::kTokens);
    }
  }
}

}  // namespace block_sparse::cuda::sm90::spmm
