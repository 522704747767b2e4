// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/common/element.cuh"
#include "cuda/epilogue/activation.cuh"
#include "cuda/ptx/matrix.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/sm90/common/lines.cuh"

namespace block_sparse::cuda::sm90 {

/// Where the SpMM kernels write: y (tokens, out) and what happens on the way.
struct Output {
  const void* bias;
  Activation activation;
  void* preactivation;
  void* y;
  std::int64_t ldy;
  int out;
  int tokens;
};

constexpr int kStoreTokens = 64;  // tokens that pass through shared memory at a time
constexpr int kStoreBytes = kStoreTokens * kOuts * 2;

/// Rounds a warpgroup's sums (64 outputs x 64 tokens, as wgmma leaves them) and lays
/// them out with the outputs contiguous, rows of 128 bytes, swizzled.
template <class Element>
__device__ __forceinline__ void put_tokens(const float (&v)[kStoreTokens / 2],
                                           std::uint32_t address) {
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
  const int lane = static_cast<int>(threadIdx.x) % 32;
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
}

/// The epilogue of a warpgroup: bias and activation, then 64 tokens at a time
/// through shared memory, where the outputs become contiguous, to y. Ordinary
/// stores: those of the copy engine would queue behind the loads.
template <class Element, int Tokens>
struct TileStore {
  const Output& output;
  unsigned char* box;  // kStoreBytes, aligned to 1024
  int barrier;         // a named barrier of the warpgroup's own

  /// d: 64 outputs from out0 x tokens from token0, as wgmma leaves them.
  __device__ __forceinline__ void operator()(float (&d)[Tokens / 2], int out0, int token0) const {
    const auto* bias = static_cast<const Element*>(output.bias);
    const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    float add[2] = {0, 0};
    if (bias != nullptr) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int out = out0 + warp * 16 + h * 8 + lane / 4;
        if (out < output.out) add[h] = widen(bias[out]);
      }
    }
#pragma unroll
    for (int c = 0; c < Tokens / kStoreTokens; ++c) {
      const int first = token0 + c * kStoreTokens;
      if (first >= output.tokens) break;
      float (&v)[kStoreTokens / 2] =
          reinterpret_cast<float (&)[kStoreTokens / 2]>(d[c * (kStoreTokens / 2)]);
#pragma unroll
      for (int i = 0; i < kStoreTokens / 2; ++i) v[i] += add[i / 2 % 2];
      if (output.preactivation != nullptr) {
        store_tokens(output.preactivation, v, out0, first);
      }
      if (output.activation != Activation::none) {
#pragma unroll
        for (int i = 0; i < kStoreTokens / 2; ++i) v[i] = activate(v[i], output.activation);
      }
      store_tokens(output.y, v, out0, first);
    }
  }

 private:
  __device__ __forceinline__ void store_tokens(void* y, const float (&v)[kStoreTokens / 2],
                                               int out0, int token0) const {
    const int thread = static_cast<int>(threadIdx.x) % 128;
    ptx::named_barrier(barrier, 128);  // the tokens before have been read
    put_tokens<Element>(v, ptx::shared_address(box));
    ptx::named_barrier(barrier, 128);
    constexpr int kUnits = kOuts / 8;  // of 16 bytes, in the outputs of a token
    const int unit = thread % kUnits;
    const bool in_row = out0 + unit * 8 < output.out;
#pragma unroll
    for (int i = 0; i < kStoreTokens * kUnits / 128; ++i) {
      const int token = thread / kUnits + i * (128 / kUnits);
      const auto value =
          *reinterpret_cast<const uint4*>(box + ptx::swizzled<128>(token, unit * 16));
      if (in_row && token0 + token < output.tokens) {
        auto* row = static_cast<Element*>(y) + (token0 + token) * output.ldy + out0;
        reinterpret_cast<uint4*>(row)[unit] = value;
      }
    }
  }
};

}  // namespace block_sparse::cuda::sm90
