// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/ptx/tma.cuh"
#include "cuda/ptx/wgmma.cuh"
#include "cuda/sm90/wide/config.cuh"

namespace block_sparse::cuda::sm90::wide {

/// A consumer warpgroup: D (64 outputs x tokens) of its tile.
template <class C>
struct Multiplier {
  using Element = typename C::Element;
  using Mma = ptx::Wgmma<Element, C::kTokens>;

  const Params& p;
  Shared<C>& shared;
  const int consumer;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  ptx::Ring<C::kStages> ring{};
  unsigned stored_parity = 1;  // the first tile need not wait for one before
  int in_flight = -1;          // the stage that the last wgmmas read
  int present = 0;             // what the last stage holds
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

  /// What lane 0 reads of what a stage holds. No other lane may, as racecheck follows only
  /// the one that tells this CTA that the stage is free.
  __device__ __forceinline__ int read(const int& of) const {
    return __shfl_sync(~0u, lane == 0 ? of : 0, 0);
  }

  /// Waits for all products in flight and gives back the stage they read, if any.
  __device__ __forceinline__ void finish() {
    ptx::wgmma_wait<0>();
    if (in_flight >= 0) release(in_flight);
    in_flight = -1;
  }

  __device__ __forceinline__ void multiply(int stage) {
    const std::uint32_t x = ptx::shared_address(shared.x(stage));
    const std::uint32_t w = ptx::shared_address(shared.w(stage, consumer));
#pragma unroll
    for (int step = 0; step < kStageK / 16; ++step) {
      const std::uint64_t a = ptx::operand<128>(w + step * (C::kMContiguous ? 16 * 128 : 32));
      Mma::template shared<C::kMContiguous, false>(d, a, ptx::operand<128>(x + step * 32));
    }
  }

  /// Sums over all stages of a tile; returns the one that ends it, which is still to be
  /// given back.
  __device__ __forceinline__ int run() {
#pragma unroll
    for (float& v : d) v = 0;
    for (;;) {
      const int stage = ring.stage;
      if (!ptx::barrier_test(&shared.full[stage], ring.parity)) {
        // A stage held meanwhile could be filled again, and, where those that follow it
        // are not ours, may be the one that is waited for.
        finish();
        ptx::barrier_wait(&shared.full[stage], ring.parity);
      }
      present = read(shared.meta[stage].present);
      ring.advance();
      if (present >= StageMeta::kTileEnd) {
        finish();
        ptx::wgmma_fence(d);
        return stage;
      }
      if ((present >> consumer & 1) == 0) {
        release(stage);
        continue;
      }
      ptx::wgmma_fence(d);
      ptx::wgmma_begin();
      multiply(stage);
      ptx::wgmma_commit();
      ptx::wgmma_fence(d);
      ptx::wgmma_wait<1>();
      if (in_flight >= 0) release(in_flight);
      in_flight = stage;
    }
  }

  /// Rounds the tile into shared memory and has the store warp write it.
  __device__ __forceinline__ void hand_over(int stage, int out0, int token0) {
    ptx::barrier_wait(&shared.stored[consumer], stored_parity);
    stored_parity ^= 1;
#pragma unroll
    for (int c = 0; c < C::kTokens / kStoreTokens; ++c) {
      constexpr int kParts = kBoxTokens / kStoreTokens;  // of a box
      float (&v)[kStoreTokens / 2] =
          reinterpret_cast<float (&)[kStoreTokens / 2]>(d[c * (kStoreTokens / 2)]);
      put_tokens<Element>(v, ptx::shared_address(shared.store(c / kParts, stage, consumer)) +
                                 c % kParts * kStoreBytes);
    }
    if (threadIdx.x % 128 == 0) shared.orders[consumer] = {out0, token0, stage};
    ptx::fence_async_reads();
    __syncwarp();
    if (lane == 0) ptx::barrier_arrive(&shared.ordered[consumer]);
  }

  __device__ __forceinline__ void store(int stage) {
    const int out0 = read(shared.meta[stage].out0[consumer]);
    const int token0 = read(shared.meta[stage].token0);
    if (out0 < 0) {
      release(stage);
      return;
    }
    const Output& output = p.output;
    const auto* bias = static_cast<const Element*>(output.bias);
    if (bias != nullptr) {
      const int out = out0 + static_cast<int>(threadIdx.x) / 32 % 4 * 16 + lane / 4;
      const float add[2] = {widen(bias[out]), widen(bias[out + 8])};
#pragma unroll
      for (int i = 0; i < C::kTokens / 2; ++i) d[i] += add[i / 2 % 2];
    }
    if (output.preactivation != nullptr) hand_over(stage, out0, token0);
    if (output.activation != Activation::none) {
#pragma unroll
      for (float& v : d) v = activate(v, output.activation);
    }
    hand_over(stage, out0, token0);
  }

  __device__ void loop() {
    for (;;) {
      const int stage = run();
      if (present == StageMeta::kAllDone) break;
      store(stage);
    }
    ptx::barrier_wait(&shared.stored[consumer], stored_parity);
    if (threadIdx.x % 128 == 0) shared.orders[consumer].out0 = -1;
    __syncwarp();
    if (lane == 0) ptx::barrier_arrive(&shared.ordered[consumer]);
  }
};

/// One lane that stores what a warpgroup has put together, so that the warpgroup goes
/// on at once.
template <class C>
__device__ void store_loop(const Params& p, const CUtensorMap* y_map,
                           const CUtensorMap* preactivation_map, Shared<C>& shared, int consumer) {
  const int rank = static_cast<int>(ptx::cluster_rank());
  bool is_y = p.output.preactivation == nullptr;
  for (unsigned parity = 0;; parity ^= 1) {
    ptx::barrier_wait(&shared.ordered[consumer], parity);
    const StoreOrder order = shared.orders[consumer];
    if (order.out0 < 0) break;
#pragma unroll
    for (int i = 0; i < C::kStores; ++i) {
      ptx::store_box(is_y ? y_map : preactivation_map, shared.store(i, order.stage, consumer),
                     order.token0 + i * kBoxTokens, order.out0);
    }
    ptx::store_commit();
    ptx::store_wait_read();
    ptx::barrier_arrive(&shared.stored[consumer]);
    if (is_y) {
      // The stage that ended the tile, for the four warps that left it to this one.
      for (int to = 0; to < kCluster; ++to) {
        ptx::barrier_arrive_cluster(&shared.empty[order.stage], (rank + to) % kCluster, 4);
      }
    }
    if (p.output.preactivation != nullptr) is_y = !is_y;
  }
}

}  // namespace block_sparse::cuda::sm90::wide
