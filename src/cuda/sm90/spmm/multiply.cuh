// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/epilogue/activation.cuh"
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
  static constexpr int kSteps = C::kDepth / 16;  // wgmmas of a part

  Shared<C>& shared;
  const int consumer;
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  ptx::Ring<C::kStages> ring{};
  float d[C::kTokens / 2];

  /// Tells every CTA of the cluster, as each may load weights into this one. The
  /// lanes that do not arrive have finished their reads, too.
  __device__ void release(int stage) const {
    __syncwarp();
    if (lane == static_cast<int>(ptx::cluster_rank())) {
      ptx::barrier_arrive(&shared.empty[stage]);
    } else if (lane < kCluster) {
      ptx::barrier_arrive_cluster(&shared.empty[stage], lane);
    }
  }

  /// The part's lines present in this warpgroup's tile.
  __device__ __forceinline__ unsigned lines_in(unsigned present, int part) const {
    return present >> (part * C::kWalkers + consumer * C::kLines) & ((1u << C::kLines) - 1);
  }

  __device__ __forceinline__ std::uint64_t x_operand(int stage, int part, int step) const {
    return ptx::operand<C::kDepth * 2>(ptx::shared_address(shared.x(stage, part)) + step * 32);
  }

  /// Blocks of 64 outputs: straight from shared memory.
  __device__ __forceinline__ void multiply_shared(int stage, unsigned present) {
#pragma unroll
    for (int part = 0; part < C::kParts; ++part) {
      if (lines_in(present, part) == 0) continue;
      const std::uint32_t w = ptx::shared_address(shared.w(stage, part, consumer));
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        const std::uint64_t a = C::kMContiguous ? ptx::operand<128>(w + step * 16 * 128)
                                                : ptx::operand<C::kDepth * 2>(w + step * 32);
        Mma::template shared<C::kMContiguous, false>(d, a, x_operand(stage, part, step));
      }
    }
  }

  /// Lower blocks: a warp's 16 outputs lie in one block, which is either read
  /// into registers or, when it is not stored, zero there.
  __device__ __forceinline__ void load_weights(int stage, unsigned present,
                                               std::uint32_t (&a)[C::kParts * kSteps][4]) const {
    const int line = warp * 16 / C::kHeight;
    const int offset = warp * 16 % C::kHeight;
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
            ptx::load_matrix_x4_transposed(
                r, block + ptx::swizzled<C::kHeight * 2>(step * 16 + low + bit4 * 8,
                                                         offset * 2 + bit3 * 16));
          } else {
            ptx::load_matrix_x4(r, block + ptx::swizzled<C::kDepth * 2>(offset + low + bit3 * 8,
                                                                        step * 32 + bit4 * 16));
          }
        } else {
          r[0] = r[1] = r[2] = r[3] = 0;
        }
      }
    }
  }

  /// Each part is one straight run of wgmmas from fence to commit: ptxas
  /// serialises them where a branch lies in between.
  __device__ __forceinline__ void multiply_registers(
      int stage, unsigned present, const std::uint32_t (&a)[C::kParts * kSteps][4]) {
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

  /// Sums over all stages of a tile.
  __device__ __forceinline__ void run() {
#pragma unroll
    for (float& v : d) v = 0;
    constexpr unsigned kPartMask = (1u << C::kLines) - 1;
    unsigned mine = 0;
#pragma unroll
    for (int part = 0; part < C::kParts; ++part) {
      mine |= kPartMask << (part * C::kWalkers + consumer * C::kLines);
    }
    int in_flight = -1;  // the stage that the last wgmmas read
    unsigned last = 0;
    while (last == 0) {
      const int stage = ring.stage;
      ptx::barrier_wait(&shared.full[stage], ring.parity);
      const StageMeta meta = shared.meta[stage];
      last = __shfl_sync(~0u, meta.last, 0);
      const unsigned present = __shfl_sync(~0u, meta.present, 0);
      ring.advance();
      if ((present & mine) == 0) {
        // A stage held over several that are not ours would stop the ring.
        if (in_flight >= 0) {
          ptx::wgmma_wait<0>();
          release(in_flight);
          in_flight = -1;
        }
        release(stage);
        continue;
      }
      if constexpr (C::kRegisterWeights) {
        std::uint32_t a[C::kParts * kSteps][4];
        load_weights(stage, present, a);
        multiply_registers(stage, present, a);
        // The fragments are overwritten next; the other warpgroup keeps the
        // tensor cores busy meanwhile.
        ptx::wgmma_wait<0>();
        release(stage);
      } else {
        ptx::wgmma_fence(d);
        ptx::wgmma_begin();
        multiply_shared(stage, present);
        ptx::wgmma_commit();
        ptx::wgmma_fence(d);
        ptx::wgmma_wait<1>();
        if (in_flight >= 0) release(in_flight);
        in_flight = stage;
      }
    }
    ptx::wgmma_wait<0>();
    ptx::wgmma_fence(d);
    if (in_flight >= 0) release(in_flight);
  }

  /// Bias and activation, then 64 tokens at a time through shared memory, where
  /// the outputs become contiguous, to y. Ordinary stores: those of the copy
  /// engine would queue behind the producer's loads.
  __device__ void store(const Params& p, int out0, int token0) {
    const auto* bias = static_cast<const Element*>(p.bias);
    float add[2] = {0, 0};
    if (bias != nullptr) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int out = out0 + warp * 16 + h * 8 + lane / 4;
        if (out < p.out) add[h] = widen(bias[out]);
      }
    }
    int buffer = 0;
#pragma unroll
    for (int c = 0; c < C::kTokens / kStoreTokens; ++c) {
      const int first = token0 + c * kStoreTokens;
      if (first >= p.tokens) break;
      float (&v)[kStoreTokens / 2] =
          reinterpret_cast<float (&)[kStoreTokens / 2]>(d[c * (kStoreTokens / 2)]);
#pragma unroll
      for (int i = 0; i < kStoreTokens / 2; ++i) v[i] += add[i / 2 % 2];
      if (p.preactivation != nullptr) {
        store_tokens(p, p.preactivation, v, buffer, out0, first);
        buffer ^= 1;
      }
      if (p.activation != Activation::none) {
#pragma unroll
        for (int i = 0; i < kStoreTokens / 2; ++i) v[i] = activate(v[i], p.activation);
      }
      store_tokens(p, p.y, v, buffer, out0, first);
      buffer ^= 1;
    }
  }

  /// One of the two buffers at a time: whoever passes the barrier of the next
  /// one has read this one.
  __device__ __forceinline__ void store_tokens(const Params& p, void* y,
                                               const float (&v)[kStoreTokens / 2], int buffer,
                                               int out0, int token0) {
    unsigned char* box = shared.stores[consumer][buffer];
    const std::uint32_t address = ptx::shared_address(box);
#pragma unroll
    for (int j = 0; j < kStoreTokens / 8; j += 2) {
      const int token = (j + lane / 16) * 8 + lane % 8;
      const int byte = warp * 32 + lane / 8 % 2 * 16;
      ptx::store_matrix_x4_transposed(address + ptx::swizzled<128>(token, byte),
                                      narrow_pair<Element>(v[4 * j], v[4 * j + 1]),
                                      narrow_pair<Element>(v[4 * j + 2], v[4 * j + 3]),
                                      narrow_pair<Element>(v[4 * j + 4], v[4 * j + 5]),
                                      narrow_pair<Element>(v[4 * j + 6], v[4 * j + 7]));
    }
    ptx::named_barrier(1 + consumer, 128);
    constexpr int kUnits = kOuts / 8;  // of 16 bytes, in the outputs of a token
    const int thread = static_cast<int>(threadIdx.x) % 128;
    const int unit = thread % kUnits;
    const bool in_row = out0 + unit * 8 < p.out;
#pragma unroll
    for (int i = 0; i < kStoreTokens * kUnits / 128; ++i) {
      const int token = thread / kUnits + i * (128 / kUnits);
      const auto value =
          *reinterpret_cast<const uint4*>(box + ptx::swizzled<128>(token, unit * 16));
      if (in_row && token0 + token < p.tokens) {
        auto* row = static_cast<Element*>(y) + (token0 + token) * p.ldy + out0;
        reinterpret_cast<uint4*>(row)[unit] = value;
      }
    }
  }
};

template <class C>
__device__ void multiply_loop(const Params& p, Shared<C>& shared) {
  Multiplier<C> multiplier{shared, static_cast<int>(threadIdx.x) / 128 - 1};
  const int rank = static_cast<int>(ptx::cluster_rank());
  const int items = pairs_of(p) * p.token_tiles;
  for (int item = blockIdx.x / kCluster; item < items; item += gridDim.x / kCluster) {
    const Work work = work_of(p, item);
    const int segment = work.pair * kConsumers + multiplier.consumer;
    const Segment place = segment < p.segments ? segment_of(p, segment) : Segment{0, 0};
    multiplier.run();
    if (segment < p.segments) {
      multiplier.store(p, place.line * p.line_height + place.offset,
                       (work.token_tile * kCluster + rank) * C::kTokens);
    }
  }
}

}  // namespace block_sparse::cuda::sm90::spmm
