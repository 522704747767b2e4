// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/sm90/lists/config.cuh"

namespace block_sparse::cuda::sm90::lists {

constexpr int kThreadSums = kTokens * kConsumerOuts / 128;

/// Transposes the 4 x 4 words of 4 neighbouring lanes: lane q's word i becomes what
/// was lane i's word q.
__device__ __forceinline__ void transpose_quad(unsigned (&v)[4]) {
  const int lane = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int step = 1; step <= 2; step *= 2) {
    const bool high = lane & step;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i & step) continue;
      const unsigned got = __shfl_xor_sync(~0u, high ? v[i] : v[i + step], step);
      if (high) {
        v[i] = got;
      } else {
        v[i + step] = got;
      }
    }
  }
}

/// The epilogue of a warpgroup: bias and activation, then straight to y.
template <class C>
struct SumStore {
  using Element = typename C::Element;
  const Params& p;
  Sums<C>& d;
  const int segment0;
  const int token0;  // of this thread
  const int quad = static_cast<int>(threadIdx.x) % 4;

  __device__ SumStore(const Params& params, Sums<C>& sums, int first_segment, int first_token)
      : p(params),
        d(sums),
        segment0(first_segment),
        token0(first_token + static_cast<int>(threadIdx.x) % 128 / 32 * 16 +
               static_cast<int>(threadIdx.x) % 32 / 4) {}

  /// Where 32 outputs begin: a quarter of what the warpgroup has.
  __device__ __forceinline__ int first_out(int quarter) const {
    const int segment = segment0 + quarter / 2;
    if (segment >= p.segments) return p.output.out;
    return segment_of(p.lines, C::kHeight, segment).line * C::kHeight + quarter % 2 * 32;
  }
  /// Pair j of the sums of a quarter, tokens 64 tile + 8 h on.
  __device__ __forceinline__ float* sums(int quarter, int tile, int j, int h) const {
    const int at = quarter * 16 + 4 * j + 2 * h;
    return &d[tile][at / C::kSums][at % C::kSums];
  }

  __device__ __forceinline__ void add_bias() const {
    const auto* bias = static_cast<const Element*>(p.output.bias);
#pragma unroll
    for (int quarter = 0; quarter < 4; ++quarter) {
      const int out0 = first_out(quarter);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int out = out0 + j * 8 + quad * 2;
        if (out >= p.output.out) break;
        const float add[2] = {widen(bias[out]), widen(bias[out + 1])};
#pragma unroll
        for (int i = 0; i < 8; ++i) sums(quarter, i / 4, j, i / 2 % 2)[i % 2] += add[i % 2];
      }
    }
  }

  /// A sixteenth of the sums a turn, which then go to the end: so there is only one copy
  /// of the long code of an activation.
  __device__ __forceinline__ void activate_all() const {
    constexpr int kTurn = 8;
    auto& flat = reinterpret_cast<float (&)[kThreadSums]>(d);
#pragma unroll 1
    for (int turn = 0; turn < kThreadSums / kTurn; ++turn) {
      float done[kTurn];
#pragma unroll
      for (int i = 0; i < kTurn; ++i) done[i] = activate(flat[i], p.output.activation);
#pragma unroll
      for (int i = 0; i < kThreadSums - kTurn; ++i) flat[i] = flat[i + kTurn];
#pragma unroll
      for (int i = 0; i < kTurn; ++i) flat[kThreadSums - kTurn + i] = done[i];
    }
  }

  /// 16 bytes a thread and token, 64 contiguous ones of four threads.
  __device__ __forceinline__ void store(void* to) const {
#pragma unroll
    for (int quarter = 0; quarter < 4; ++quarter) {
      const int out = first_out(quarter) + quad * 8;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int token = token0 + i / 2 * 64 + i % 2 * 8;
        unsigned words[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float* pair = sums(quarter, i / 2, j, i % 2);
          words[j] = narrow_pair<Element>(pair[0], pair[1]);
        }
        transpose_quad(words);
        if (token < p.output.tokens && out < p.output.out) {
          *reinterpret_cast<uint4*>(static_cast<Element*>(to) + token * p.output.ldy + out) = {
              words[0], words[1], words[2], words[3]};
        }
      }
    }
  }

  __device__ __forceinline__ void operator()() const {
    if (p.output.bias != nullptr) add_bias();
    // Before and after the activation, by one copy of the code.
#pragma unroll 1
    for (int pass = p.output.preactivation == nullptr; pass < 2; ++pass) {
      if (pass == 1 && p.output.activation != Activation::none) activate_all();
      store(pass == 0 ? p.output.preactivation : p.output.y);
    }
  }
};

}  // namespace block_sparse::cuda::sm90::lists
