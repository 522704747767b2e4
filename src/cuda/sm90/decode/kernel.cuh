// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/epilogue/activation.cuh"
#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/launch.cuh"
#include "cuda/sm90/decode/product.cuh"

namespace block_sparse::cuda::sm90::decode {

template <class C>
struct Shared {
  typename Product<C>::Shared product;
  alignas(16) float received[C::kTokens * kOuts];  // from all CTAs of the cluster

  /// Of a token, in the place of the stages.
  __device__ float* sums(int token) {
    static_assert(sizeof(product.stages) >= C::kTokens * kSumPitch * 4);
    return reinterpret_cast<float*>(product.stages[0]) + token * kSumPitch;
  }
};

template <class T>
__device__ __forceinline__ void store(const SpmmProblem& p, int token, int row, float v) {
  if (p.bias != nullptr) v += widen(static_cast<const T*>(p.bias)[row]);
  const std::int64_t at = token * p.ldy + row;
  if (p.preactivation != nullptr) static_cast<T*>(p.preactivation)[at] = narrow<T>(v);
  static_cast<T*>(p.y)[at] = narrow<T>(activate(v, p.activation));
}

/// A cluster computes 64 outputs for all tokens: a warp of each CTA loads, the others multiply.
/// The CTAs take stages of K in turn, and each adds up the sums of all for its share of the
/// tokens.
template <class C>
__global__ void __launch_bounds__(kThreads, 2)
    kernel(const SpmmProblem p, const __grid_constant__ CUtensorMap x_map,
           const __grid_constant__ CUtensorMap w_map) {
  using T = typename C::Element;
  extern __shared__ unsigned char raw[];
  auto& shared =
      *reinterpret_cast<Shared<C>*>(raw + (1024 - ptx::shared_address(raw) % 1024) % 1024);
  if (threadIdx.x == 0) {
    for (int s = 0; s < Product<C>::kStages; ++s) {
      ptx::barrier_init(&shared.product.full[s], 1);
      ptx::barrier_init(&shared.product.empty[s], 4);
    }
    ptx::fence_barrier_init();
  }
  __syncthreads();
  Work work;
  work.rank = static_cast<int>(ptx::cluster_rank());
  work.ctas = static_cast<int>(ptx::cluster_size());
  ptx::wait_for_kernels_before();
  int segment = static_cast<int>(blockIdx.x) / work.ctas;
  // Long lines first.
  if (p.lines.order != nullptr) {
    const int a_tile = static_cast<int>(p.height) / kOuts;
    segment = p.lines.order[segment / a_tile] * a_tile + segment % a_tile;
  }
  work.out0 = segment * kOuts;
  ptx::cluster_arrive();
  Product<C> product{p, work, shared.product};
  product.look_up();

  const int thread = static_cast<int>(threadIdx.x);
  if (thread >= kLoader) {
    product.load(&x_map, &w_map);
    ptx::allow_next_kernel();
  } else {
    float d[C::kTokens / 2] = {};
    product.multiply(d);
    ptx::allow_next_kernel();
    ptx::named_barrier(1, kLoader);  // all have read the stages
    const int lane = thread % 32;
#pragma unroll
    for (int i = 0; i < C::kTokens / 2; ++i) {
      const int token = i / 4 * 8 + lane % 4 * 2 + i % 2;
      shared.sums(token)[thread / 32 * 16 + lane / 4 + i / 2 % 2 * 8] = d[i];
    }
  }
  __syncthreads();
  ptx::cluster_wait();  // all have started
  if (work.ctas == 1) {
    for (int e = thread; e < C::kTokens * kOuts; e += kThreads) {
      const int token = e / kOuts;
      if (token >= p.tokens) break;
      store<T>(p, token, work.out0 + e % kOuts, shared.sums(token)[e % kOuts]);
    }
    return;
  }
  const int share = C::kTokens / work.ctas;
  for (int e = thread * 4; e < C::kTokens * kOuts; e += kThreads * 4) {
    const int token = e / kOuts;
    const int to = (work.rank * share + token % share) * kOuts + e % kOuts;
    ptx::store_cluster_x4(ptx::shared_address(&shared.received[to]),
                          static_cast<unsigned>(token / share),
                          *reinterpret_cast<const float4*>(shared.sums(token) + e % kOuts));
  }
  ptx::cluster_sync();
  for (int e = thread; e < share * kOuts; e += kThreads) {
    const int token = work.rank * share + e / kOuts;
    if (token >= p.tokens) break;
    float v = 0;
    for (int r = 0; r < work.ctas; ++r) v += shared.received[r * share * kOuts + e];
    store<T>(p, token, work.out0 + e % kOuts, v);
  }
}

}  // namespace block_sparse::cuda::sm90::decode
