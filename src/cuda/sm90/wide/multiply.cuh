// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/ptx/matrix.cuh"
#include "cuda/ptx/wgmma.cuh"
#include "cuda/sm90/wide/store.cuh"

namespace block_sparse::cuda::sm90::wide {

/// A consumer warpgroup: D (64 outputs x tokens) of its tile.
template <class C>
struct Multiplier {
  using Element = typename C::Element;
  using Mma = ptx::Wgmma<Element, C::kTokens>;
  static constexpr bool kInRegisters = C::kSide < 64;  // W
  static constexpr int kSteps = C::kSide / 16;         // wgmmas of a part
  using Fragments = std::uint32_t[kInRegisters ? C::kParts * kSteps : 1][4];

  const Params& p;
  Shared<C>& shared;
  const int consumer;
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  ptx::Ring<C::kStages> ring{};
  int room = 0;                // for stores, the next
  unsigned stored_parity = 1;  // the first stores need not wait for those before
  int in_flight = -1;          // the stage that the last wgmmas read
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

  /// Waits for all products in flight and gives back the stage they read, if any.
  __device__ __forceinline__ void finish() {
    ptx::wgmma_wait<0>();
    if (in_flight >= 0) release(in_flight);
    in_flight = -1;
  }

  /// A part's lines of this warpgroup that have a block.
  static __device__ __forceinline__ unsigned lines_in(int bits, int part, int consumer) {
    return static_cast<unsigned>(bits) >> (part * C::kTileLines + consumer * C::kLines) &
           ((1u << C::kLines) - 1);
  }

  /// A warp's 16 outputs lie in one block less than 64 wide, which is either read into
  /// registers or, when it is not stored, zero there.
  __device__ __forceinline__ void load_weights(int stage, int bits, Fragments& a) const {
    const int line = warp * 16 / C::kSide;
    const int offset = warp * 16 % C::kSide;
    const int low = lane % 8;
    const int bit3 = lane / 8 % 2;
    const int bit4 = lane / 16;
#pragma unroll
    for (int part = 0; part < C::kParts; ++part) {
      const bool stored = lines_in(bits, part, consumer) >> line & 1;
      const std::uint32_t block =
          ptx::shared_address(shared.w(stage, part * C::kTileLines + consumer * C::kLines + line));
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        std::uint32_t (&r)[4] = a[part * kSteps + step];
        if (!stored) {
          r[0] = r[1] = r[2] = r[3] = 0;
        } else if constexpr (C::kMContiguous) {
          const int at = (step * 16 + low + bit4 * 8) * C::kSide * 2 + offset * 2 + bit3 * 16;
          ptx::load_matrix_x4_transposed(r, ptx::swizzled<128>(0, block + at));
        } else {
          const int at = (offset + low + bit3 * 8) * C::kSide * 2 + step * 32 + bit4 * 16;
          ptx::load_matrix_x4(r, ptx::swizzled<128>(0, block + at));
        }
      }
    }
  }

  /// The products of parts [First, First + Count) of a stage: one straight run of wgmmas
  /// from fence to commit, as ptxas serialises them where a branch lies in between.
  template <int First, int Count>
  __device__ __forceinline__ void multiply(int stage, const Fragments& a) {
    ptx::wgmma_fence(d);
    ptx::wgmma_begin();
#pragma unroll
    for (int part = First; part < First + Count; ++part) {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        const std::uint64_t x = ptx::operand<C::kStageK * 2>(ptx::shared_address(shared.x(stage)) +
                                                             part * C::kSide * 2 + step * 32);
        if constexpr (kInRegisters) {
          Mma::template registers<false>(d, a[part * kSteps + step], x);
        } else {
          const std::uint32_t w = ptx::shared_address(shared.w(stage, consumer));
          Mma::template shared<C::kMContiguous, false>(
              d, ptx::operand<128>(w + step * (C::kMContiguous ? 16 * 128 : 32)), x);
        }
      }
    }
    ptx::wgmma_commit();
    ptx::wgmma_fence(d);
  }

  /// The fragments were read until here: wgmma does so after it was issued.
  static __device__ __forceinline__ void keep(Fragments& a) {
#pragma unroll
    for (auto& part : a) {
#pragma unroll
      for (std::uint32_t& r : part) asm volatile("" : "+r"(r)::"memory");
    }
  }

  struct Ended {
    bool all_done;
    int out0;  // of the warp's 16 outputs; negative: none
    int token0;
  };

  /// Adds the ring's next stage that holds anything for this warpgroup, or all before the
  /// tile ends; true if it does. Fragments are loaded into `now` while the products from
  /// `before` run.
  __device__ __forceinline__ bool add_stage(Fragments& now, Fragments& before, Ended& ended) {
    int stage, bits;
    bool first, second;
    for (;;) {
      stage = ring.stage;
      if (!__all_sync(~0u, ptx::barrier_test(&shared.full[stage], ring.parity))) {
        // A stage held meanwhile could be filled again, and, where those that follow it
        // are not ours, may be the one that is waited for.
        finish();
        ptx::barrier_wait(&shared.full[stage], ring.parity);
      }
      // Only the lane that gives the stage back reads this, as racecheck follows no other.
      const StageMeta<C>& meta = shared.meta[stage];
      bits = __shfl_sync(~0u, lane == 0 ? meta.bits : 0, 0);
      if (bits >= kTileEnd) {
        const int line = consumer * C::kLines + warp * 16 / C::kSide;
        const int out0 = __shfl_sync(~0u, lane == 0 ? meta.out0[line] : 0, 0);
        ended = {bits >= kAllDone, out0 < 0 ? out0 : out0 + warp * 16 % C::kSide,
                 __shfl_sync(~0u, lane == 0 ? meta.token0 : 0, 0)};
      }
      ring.advance();
      first = lines_in(bits, 0, consumer) != 0;
      second = C::kParts == 2 && lines_in(bits, 1, consumer) != 0;
      if (first || second) break;
      release(stage);
      if (bits >= kTileEnd) return true;
    }
    if constexpr (kInRegisters) load_weights(stage, bits, now);
    if (first && second) {
      multiply<0, C::kParts>(stage, now);
    } else if (first) {
      multiply<0, 1>(stage, now);
    } else {
      multiply<C::kParts - 1, 1>(stage, now);
    }
    ptx::wgmma_wait<1>();
    if constexpr (kInRegisters) keep(before);
    if (in_flight >= 0) release(in_flight);
    in_flight = stage;
    return bits >= kTileEnd;
  }

  /// Sums over all stages of a tile.
  __device__ __forceinline__ Ended run() {
#pragma unroll
    for (float& v : d) v = 0;
    Fragments a, b;
    Ended ended;
    while (!add_stage(a, b, ended) && !add_stage(b, a, ended)) {
    }
    finish();
    ptx::wgmma_fence(d);
    return ended;
  }

  /// Rounds the tile into shared memory, a part after the other, and has the store warp
  /// write it.
  __device__ __forceinline__ void hand_over(int out, int token0, bool is_y) {
#pragma unroll
    for (int c = 0; c < C::kTokens / kStoreTokens; ++c) {
      ptx::barrier_wait(&shared.stored[consumer][room], stored_parity);
      put_tokens<C>(reinterpret_cast<const float (&)[kStoreTokens / 2]>(d[c * (kStoreTokens / 2)]),
                    ptx::shared_address(shared.stores[consumer][room]));
      order(out, token0 + c * kStoreTokens, is_y);
    }
  }
  __device__ __forceinline__ void order(int out, int token0, bool is_y) {
    StoreOrder<C>& to = shared.orders[consumer][room];
    if (lane == 0 && warp * 16 % C::kSide == 0) to.out0[warp * 16 / C::kSide] = out;
    if (lane == 0 && warp == 0) {
      to.token0 = token0;
      to.is_y = is_y;
    }
    ptx::fence_async_reads();
    __syncwarp();
    if (lane == 0) ptx::barrier_arrive(&shared.ordered[consumer][room]);
    if (room == 1) stored_parity ^= 1;
    room ^= 1;
  }

  __device__ __forceinline__ void store(int out, int token0) {
    const Output& output = p.output;
    const auto* bias = static_cast<const Element*>(output.bias);
    if (bias != nullptr && out >= 0) {
      const float add[2] = {widen(bias[out + lane / 4]), widen(bias[out + lane / 4 + 8])};
#pragma unroll
      for (int i = 0; i < C::kTokens / 2; ++i) d[i] += add[i / 2 % 2];
    }
    if (output.preactivation != nullptr) hand_over(out, token0, false);
    if (output.activation != Activation::none) {
#pragma unroll
      for (float& v : d) v = activate(v, output.activation);
    }
    hand_over(out, token0, true);
  }

  __device__ void loop() {
    for (;;) {
      const Ended ended = run();
      if (ended.all_done) break;
      store(ended.out0, ended.token0);
    }
    ptx::barrier_wait(&shared.stored[consumer][room], stored_parity);
    order(-1, -1, true);
  }
};

}  // namespace block_sparse::cuda::sm90::wide
