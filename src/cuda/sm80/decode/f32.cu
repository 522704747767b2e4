// SPDX-License-Identifier: Apache-2.0
#include <bit>

#include "cuda/common/launch.h"
#include "cuda/epilogue/activation.cuh"
#include "cuda/ptx/launch.cuh"
#include "cuda/sm80/decode/decode.h"
#include "cuda/sm80/decode/strip.cuh"

namespace block_sparse::cuda::sm80::decode {
namespace {

constexpr int kOuts = 16;  // of a CTA
// K of a warp's step: eight lanes take four each, four lanes take four outputs each,
// so that a lane's part of W is 4 x 4 however a block lies.
constexpr int kStep = 32;
constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;

/// Four consecutive floats that are read once, past L1.
__device__ __forceinline__ void load_once(float (&to)[4], const float* from) {
  asm volatile("ld.global.nc.L1::no_allocate.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(to[0]), "=f"(to[1]), "=f"(to[2]), "=f"(to[3])
               : "l"(from));
}

/// A CTA computes 16 outputs for up to `Tokens` tokens; its warps take steps of K in
/// turn and their sums are added in the order of the warps.
template <int Tokens, bool KContiguous>
__global__ void __launch_bounds__(kThreads) kernel(const SpmmProblem p, int log_width) {
  __shared__ float partial[kWarps][Tokens][kOuts];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int strips = static_cast<int>(p.height) / kOuts;
  const int line = static_cast<int>(blockIdx.x) / strips;
  const int m0 = static_cast<int>(blockIdx.x) % strips * kOuts;
  const int token0 = static_cast<int>(blockIdx.y) * Tokens;
  const int tokens = min(Tokens, static_cast<int>(p.tokens) - token0);
  ptx::wait_for_kernels_before();
  const int begin = p.lines.pointers[line];
  const int end = p.lines.pointers[line + 1];
  const int k_end = (end - begin) << log_width;
  const int my_out = m0 + lane / 8 * 4;
  const float* x = static_cast<const float*>(p.x) + token0 * p.ldx;

  float d[Tokens][4] = {};
#pragma unroll 2
  for (int k = warp * kStep + lane % 8 * 4; k < k_end; k += kWarps * kStep) {
    const int i = begin + (k >> log_width);
    const int in_block = k & ((1 << log_width) - 1);
    const float* block = static_cast<const float*>(p.values) +
                         ((std::int64_t(p.lines.block_ids[i]) * p.height) << log_width);
    float w[4][4];  // out, k; or k, out
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      load_once(w[j], KContiguous ? block + ((my_out + j) << log_width) + in_block
                                  : block + (in_block + j) * p.height + my_out);
    }
    const float* from = x + (std::int64_t(p.lines.others[i]) << log_width) + in_block;
#pragma unroll
    for (int t = 0; t < Tokens; ++t) {
      if (t >= tokens) break;
      const float4 v = __ldg(reinterpret_cast<const float4*>(from + t * p.ldx));
      const float xs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int m = 0; m < 4; ++m) d[t][m] += xs[j] * (KContiguous ? w[m][j] : w[j][m]);
      }
    }
  }
  ptx::allow_next_kernel();  // not earlier, as in decode.cu
#pragma unroll
  for (int t = 0; t < Tokens; ++t) {
#pragma unroll
    for (int m = 0; m < 4; ++m) {
#pragma unroll
      for (int other = 4; other > 0; other /= 2) d[t][m] += __shfl_xor_sync(~0u, d[t][m], other);
      if (lane % 8 == 0) partial[warp][t][lane / 8 * 4 + m] = d[t][m];
    }
  }
  __syncthreads();

  const std::int64_t out0 = line * p.height + m0;
  for (int e = static_cast<int>(threadIdx.x); e < tokens * kOuts; e += kThreads) {
    const int t = e / kOuts;
    const int m = e % kOuts;
    float v = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) v += partial[w][t][m];
    if (p.bias != nullptr) v += static_cast<const float*>(p.bias)[out0 + m];
    const std::int64_t at = (token0 + t) * p.ldy + out0 + m;
    if (p.preactivation != nullptr) static_cast<float*>(p.preactivation)[at] = v;
    static_cast<float*>(p.y)[at] = activate(v, p.activation);
  }
}

template <int Tokens>
Status launch(const SpmmProblem& p, Stream stream) {
  const std::int64_t strips = p.lines.count * (p.height / kOuts);
  if (strips == 0) return {};
  const dim3 grid(static_cast<unsigned>(strips),
                  static_cast<unsigned>((p.tokens + Tokens - 1) / Tokens));
  const int log_width = std::countr_zero(static_cast<unsigned>(p.width));
  const auto function = p.stride_k == 1 ? kernel<Tokens, true> : kernel<Tokens, false>;
  Device device;
  if (Status s = current_device(&device); !s.ok()) return s;
  return DependentLaunch(device, grid, kThreads, 0, stream)("launching the f32 decode kernel",
                                                            function, p, log_width);
}

constexpr unsigned kCtas = 2;  // that share a strip

template <class C>
Status launch_strip(const SpmmProblem& p, const Device& device, Stream stream) {
  const std::int64_t strips =
      tiles_of(p.lines.count, p.height) * (std::max<std::int64_t>(C::kRows, p.height) / C::kRows);
  if (strips == 0) return {};
  const int log_width = std::countr_zero(static_cast<unsigned>(p.width));
  constexpr int kBytes = sizeof(Shared<C>);
  if (Status s = allow_shared_memory(strip_kernel<C>, kBytes); !s.ok()) return s;
  return DependentLaunch(device, static_cast<unsigned>(strips) * kCtas, C::kThreads, kBytes, stream,
                         kCtas)("launching the f32 decode kernel", strip_kernel<C>, p, log_width);
}

template <bool KContiguous>
Status launch_strip(const SpmmProblem& p, const Device& device, Stream stream) {
  if (p.height == 16) return launch_strip<Strip<4, KContiguous>>(p, device, stream);
  if (p.height == 32) return launch_strip<Strip<2, KContiguous>>(p, device, stream);
  return launch_strip<Strip<1, KContiguous>>(p, device, stream);
}

}  // namespace

const char* refusal_f32(const SpmmProblem& p) {
  if (p.dtype != DataType::f32) return "not float32";
  return layout_refusal(p);
}

Status run_f32(const SpmmProblem& p, Stream stream) {
  if (p.tokens == 1) return launch<1>(p, stream);
  if (p.tokens <= 4) return launch<4>(p, stream);
  if (p.tokens <= 8) return launch<8>(p, stream);
  Device device;
  if (Status s = current_device(&device); !s.ok()) return s;
  // Strips want 106 KB of shared memory, and were measured on Hopper alone.
  if (p.tokens <= 32 || device.major != 9) return launch<16>(p, stream);
  return p.stride_k == 1 ? launch_strip<true>(p, device, stream)
                         : launch_strip<false>(p, device, stream);
}

}  // namespace block_sparse::cuda::sm80::decode
