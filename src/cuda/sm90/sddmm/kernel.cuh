// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "block_sparse/pattern.h"
#include "cuda/ptx/tma.cuh"
#include "cuda/ptx/wgmma.cuh"
#include "cuda/sddmm/output.cuh"
#include "cuda/sddmm/work.cuh"

namespace block_sparse::cuda::sm90::sddmm {

constexpr int kConsumers = 2;
constexpr int kStageTokens = 64;  // K of a stage
constexpr int kThreads = 128 * (1 + kConsumers);
constexpr int kProducerRegisters = 40;
constexpr int kConsumerRegisters = 232;
constexpr int kBoxBytes = kStageTokens * 64 * 2;  // 64 tokens of 64 features

/// A CTA multiplies one block row with several of its block columns, which
/// share dy. Side 128: each consumer owns 64 rows of two blocks. Side 64: each
/// owns four of eight blocks. Either way 128 accumulators a thread.
template <class Element_, int Side_>
struct Config {
  using Element = Element_;
  static constexpr int kSide = Side_;
  static constexpr int kBlocks = kSide == 128 ? 2 : 8;  // of a CTA
  static constexpr int kOwned = kSide == 128 ? 2 : 4;   // of a consumer
  static constexpr int kBoxes = kSide / 64;
  static constexpr int kDyBytes = kBoxes * kBoxBytes;
  static constexpr int kXBytes = kBoxes * kBoxBytes;  // of a block
  static constexpr int kStageBytes = kDyBytes + kBlocks * kXBytes;
  static constexpr int kStages = 221184 / kStageBytes;  // 216 of the 227 KB
};

template <class C>
struct Shared {
  alignas(1024) unsigned char stages[C::kStages][C::kStageBytes];
  alignas(8) std::uint64_t full[C::kStages];
  alignas(8) std::uint64_t empty[C::kStages];

  __device__ unsigned char* dy(int stage, int box) { return stages[stage] + box * kBoxBytes; }
  __device__ unsigned char* x(int stage, int block, int box) {
    return stages[stage] + C::kDyBytes + block * C::kXBytes + box * kBoxBytes;
  }
};

struct Params {
  SddmmPieces pieces;
  PatternView pattern;
  SddmmOutput output;
};

__device__ __forceinline__ int stages_of(const TokenRange& tokens) {
  return (tokens.end - tokens.begin + kStageTokens - 1) / kStageTokens;
}

template <class C>
__device__ void load_loop(const Params& p, const CUtensorMap* dy_map, const CUtensorMap* x_map,
                          Shared<C>& shared) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  ptx::Ring<C::kStages> ring;
  SddmmWork work;
  for (int item = blockIdx.x; find_work<C::kBlocks>(p.pieces, item, &work); item += gridDim.x) {
    const int col = lane < work.count ? p.pattern.col_indices[work.first + lane] * C::kSide : 0;
    const TokenRange tokens = tokens_of(p.pieces, work.split);
    const int stages = stages_of(tokens);
    for (int s = 0; s < stages; ++s) {
      const int token = tokens.begin + s * kStageTokens;
      ptx::barrier_wait(&shared.empty[ring.stage], ring.parity ^ 1);
      std::uint64_t* full = &shared.full[ring.stage];
      if (lane == 0) {
        ptx::barrier_arrive_expect(full, C::kDyBytes + work.count * C::kXBytes);
#pragma unroll
        for (int box = 0; box < C::kBoxes; ++box) {
          ptx::load_box(dy_map, shared.dy(ring.stage, box), full, token,
                        work.line * C::kSide + box * 64);
        }
      }
      __syncwarp();
      if (lane < work.count) {
#pragma unroll
        for (int box = 0; box < C::kBoxes; ++box) {
          ptx::load_box(x_map, shared.x(ring.stage, lane, box), full, token, col + box * 64);
        }
      }
      ring.advance();
    }
  }
}

/// A consumer warpgroup: D (64 rows x a block's columns) of each of its blocks.
template <class C>
struct Multiplier {
  using Element = typename C::Element;
  using Mma = ptx::Wgmma<Element, C::kSide>;

  Shared<C>& shared;
  const int consumer;
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  ptx::Ring<C::kStages> ring{};
  float d[C::kOwned][C::kSide / 2];

  // Side 128: the consumer's half of the rows of all blocks; side 64: its
  // blocks.
  __device__ int dy_box() const { return C::kSide == 128 ? consumer : 0; }
  __device__ int block0() const { return C::kSide == 128 ? 0 : consumer * C::kOwned; }

  __device__ __forceinline__ void fence() {
#pragma unroll
    for (int b = 0; b < C::kOwned; ++b) ptx::wgmma_fence(d[b]);
  }
  __device__ __forceinline__ void release(int stage) const {
    if (lane == 0) ptx::barrier_arrive(&shared.empty[stage]);
  }

  /// Sums `Count` blocks over the stages. The count is a template argument, as
  /// ptxas serialises wgmmas that lie behind a branch of their own.
  template <int Count>
  __device__ __forceinline__ void sum(int stages) {
    int in_flight = -1;
    for (int s = 0; s < stages; ++s) {
      const int stage = ring.stage;
      ptx::barrier_wait(&shared.full[stage], ring.parity);
      ring.advance();
      if constexpr (Count == 0) {
        release(stage);
        continue;
      }
      fence();
      ptx::wgmma_begin();
#pragma unroll
      for (int step = 0; step < kStageTokens / 16; ++step) {
        const std::uint64_t a =
            ptx::operand<128>(ptx::shared_address(shared.dy(stage, dy_box())) + step * 16 * 128);
#pragma unroll
        for (int b = 0; b < Count; ++b) {
          const std::uint64_t x = ptx::operand<128>(
              ptx::shared_address(shared.x(stage, block0() + b, 0)) + step * 16 * 128, kBoxBytes);
          Mma::template shared<true, true>(d[b], a, x);
        }
      }
      ptx::wgmma_commit();
      fence();
      ptx::wgmma_wait<1>();
      if (in_flight >= 0) release(in_flight);
      in_flight = stage;
    }
    ptx::wgmma_wait<0>();
    fence();
    if (in_flight >= 0) release(in_flight);
  }

  __device__ __forceinline__ void run(const Params& p, const SddmmWork& work) {
#pragma unroll
    for (int b = 0; b < C::kOwned; ++b) {
#pragma unroll
      for (float& v : d[b]) v = 0;
    }
    const int owned = __shfl_sync(~0u, min(max(work.count - block0(), 0), C::kOwned), 0);
    const int stages = stages_of(tokens_of(p.pieces, work.split));
    switch (owned) {
      case 0:
        sum<0>(stages);
        break;
      case 1:
        sum<1>(stages);
        break;
      case 2:
        sum<2>(stages);
        break;
      default:
        if constexpr (C::kOwned == 4) {
          if (owned == 3) {
            sum<3>(stages);
          } else {
            sum<4>(stages);
          }
        }
    }
#pragma unroll
    for (int b = 0; b < C::kOwned; ++b) {
      if (b >= owned) continue;
      const int slot = p.pattern.block_ids[work.first + block0() + b];
      const int row = dy_box() * 64 + warp * 16 + lane / 4;
#pragma unroll
      for (int i = 0; i < C::kSide / 2; i += 2) {
        const int at = (row + i / 2 % 2 * 8) * C::kSide + i / 4 * 8 + lane % 4 * 2;
        p.output.template store<Element>(work.split, slot, at, d[b][i], d[b][i + 1]);
      }
    }
  }
};

template <class C>
__device__ void multiply_loop(const Params& p, Shared<C>& shared) {
  Multiplier<C> multiplier{shared, static_cast<int>(threadIdx.x) / 128 - 1};
  SddmmWork work;
  for (int item = blockIdx.x; find_work<C::kBlocks>(p.pieces, item, &work); item += gridDim.x) {
    multiplier.run(p, work);
  }
}

/// dvalues = dyᵀ x on the stored blocks: a producer warp and two consumer
/// warpgroups, persistent over pieces of block rows.
template <class C>
__global__ void __launch_bounds__(kThreads, 1)
    kernel(const Params p, const __grid_constant__ CUtensorMap dy_map,
           const __grid_constant__ CUtensorMap x_map) {
  extern __shared__ unsigned char raw[];
  auto& shared =
      *reinterpret_cast<Shared<C>*>(raw + (1024 - ptx::shared_address(raw) % 1024) % 1024);
  if (threadIdx.x == 0) {
    for (int s = 0; s < C::kStages; ++s) {
      ptx::barrier_init(&shared.full[s], 1);
      ptx::barrier_init(&shared.empty[s], kConsumers * 4);
    }
    ptx::fence_barrier_init();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    ptx::registers_decrease<kProducerRegisters>();
    if (threadIdx.x < 32) load_loop<C>(p, &dy_map, &x_map, shared);
  } else {
    ptx::registers_increase<kConsumerRegisters>();
    multiply_loop<C>(p, shared);
  }
  p.output.template clear_spare<typename C::Element>(p.pattern.block_ids,
                                                     p.pieces.crow[p.pieces.lines]);
}

}  // namespace block_sparse::cuda::sm90::sddmm
