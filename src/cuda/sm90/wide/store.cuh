// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/ptx/matrix.cuh"
#include "cuda/ptx/tma.cuh"
#include "cuda/sm90/wide/config.cuh"

namespace block_sparse::cuda::sm90::wide {

/// Rounds a warpgroup's sums (64 outputs x 64 tokens, as wgmma leaves them) and lays them
/// out as the boxes of its lines, with the outputs contiguous, swizzled.
template <class C>
__device__ __forceinline__ void put_tokens(const float (&v)[kStoreTokens / 2],
                                           std::uint32_t address) {
  using Element = typename C::Element;
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::uint32_t line = address + warp * 16 / C::kSide * (kStoreTokens * C::kRowBytes);
  const int byte = warp * 16 % C::kSide * 2 + lane / 8 % 2 * 16;
#pragma unroll
  for (int j = 0; j < kStoreTokens / 8; j += 2) {
    const int token = (j + lane / 16) * 8 + lane % 8;
    ptx::store_matrix_x4_transposed(line + ptx::swizzled<C::kRowBytes>(token, byte),
                                    narrow_pair<Element>(v[4 * j], v[4 * j + 1]),
                                    narrow_pair<Element>(v[4 * j + 2], v[4 * j + 3]),
                                    narrow_pair<Element>(v[4 * j + 4], v[4 * j + 5]),
                                    narrow_pair<Element>(v[4 * j + 6], v[4 * j + 7]));
  }
}

/// One lane that stores what a warpgroup has put together, so that the warpgroup goes on at
/// once. No more than 8 KB at a time: loads wait behind them.
template <class C>
__device__ void store_loop(const Params& p, const CUtensorMap* y_map,
                           const CUtensorMap* preactivation_map, Shared<C>& shared, int consumer) {
  unsigned parity = 0;
  for (int room = 0;; room ^= 1) {
    ptx::barrier_wait(&shared.ordered[consumer][room], parity);
    const StoreOrder<C>& order = shared.orders[consumer][room];
    if (order.token0 < 0) break;
    const unsigned char* from = shared.stores[consumer][room];
    for (int line = 0; line < C::kLines; ++line) {
      if (order.out0[line] < 0) continue;
      ptx::store_box(order.is_y ? y_map : preactivation_map,
                     from + line * kStoreTokens * C::kRowBytes, order.token0, order.out0[line]);
    }
    ptx::store_commit();
    ptx::store_wait_read();
    ptx::barrier_arrive(&shared.stored[consumer][room]);
    if (room == 1) parity ^= 1;
  }
}

}  // namespace block_sparse::cuda::sm90::wide
