// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

#include "cuda/epilogue/activation.cuh"
#include "cuda/generic/generic.h"
#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/launch.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/sm80/decode/positions.cuh"

/// The product of 33 to 64 tokens of f32, without tensor cores: strips of 64 outputs.
namespace block_sparse::cuda::sm80::decode {

using generic::SpmmProblem;

/// Strip: `Lines` times 64 / `Lines` outputs, one after another. KContiguous: k runs along the rows
/// of a stored block (forward), else outputs do (input gradient).
template <int Lines_, bool KContiguous_>
struct Strip {
  static constexpr int kLines = Lines_;
  static constexpr bool kKContiguous = KContiguous_;
  static constexpr int kRows = 64;
  static constexpr int kLineRows = kRows / kLines;
  static constexpr int kTokens = 64;
  static constexpr int kTilesN = kTokens / 8;
  static constexpr int kWarps = 4;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kDepth = 2;  // steps under way
  static constexpr int kStepK = 16;
  static constexpr int kStepBytes = (kRows + kTokens) * kStepK * 4;
  static constexpr int kSumPitch = kRows + 4;  // of a token
};

template <class C>
struct Shared {
  Positions<C::kLines, C::kThreads> positions;
  // From the CTAs of the cluster.
  alignas(16) float received[C::kTokens * C::kRows];
  // The sums take the place of the steps.
  alignas(16) float work[std::max(C::kWarps * C::kDepth * C::kStepBytes / 4,
                                  C::kWarps* C::kTokens* C::kSumPitch)];
};

/// What does not change along K: `x` at this lane's first token.
struct Place {
  const char* x;
  std::int64_t ldx8;  // bytes of 8 tokens
  int tokens;         // from this lane's first on
  int log_width, height, m0;
  int first;  // position that the list counts from
};

/// A step of a warp, 16 k. A lane has the sums of rows lane / 8 + 4 j (KContiguous; else four
/// consecutive ones of each 16) and tokens lane % 8 + 8 n. W and x lie in shared memory in rows of
/// 64 bytes or, where outputs are contiguous, of 256.
template <class C>
struct Step {
  static constexpr int kDown = C::kRows / 4;
  unsigned stored;  // a bit for each line that has a block

  struct Sums {
    float v[kDown][C::kTilesN];
    template <class F>
    __device__ __forceinline__ void each(const F& f) const {
      const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
      for (int j = 0; j < kDown; ++j) {
        const int row = C::kKContiguous ? lane / 8 + 4 * j : j / 4 * 16 + lane / 8 * 4 + j % 4;
#pragma unroll
        for (int n = 0; n < C::kTilesN; ++n) f(row, lane % 8 + 8 * n, v[j][n]);
      }
    }
  };

  /// Bytes from row 8 n of rows of 64 bytes to piece `unit` of row 8 n + `row`.
  static __device__ __forceinline__ std::uint32_t piece(int row, int unit) {
    return static_cast<std::uint32_t>(row * 64 + ((unit ^ (row / 2 % 4)) * 16));
  }

  /// Starts to copy step `step` of what is listed to `at`.
  __device__ __forceinline__ void load(const SpmmProblem& p, const Shared<C>& shared,
                                       const Place& place, int step, std::uint32_t at) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    // A step lies within a block.
    const int i = step * 16 >> place.log_width;
    const int width = 1 << place.log_width;
    const int in_block = step * 16 & (width - 1);
    const int other = shared.positions.others[i];
    int slot[C::kLines];
    shared.positions.slots_at(i, other, slot);
    __syncwarp();  // all lanes have read what was here
    stored = 0;
#pragma unroll
    for (int l = 0; l < C::kLines; ++l) stored |= slot[l] >= 0 ? 1u << l : 0;
    const auto block = [&](int l) {
      return static_cast<const float*>(p.values) +
             ((std::int64_t(slot[l]) * place.height) << place.log_width);
    };
    const std::uint32_t lane_piece = piece(lane / 4, lane % 4);
#pragma unroll
    for (int r = 0; r < C::kRows / 8; ++r) {
      if constexpr (C::kKContiguous) {
        const int l = r * 8 / C::kLineRows;
        const int row = place.m0 + r * 8 % C::kLineRows + lane / 4;
        if (slot[l] >= 0) {
          ptx::copy_async(at + static_cast<std::uint32_t>(r) * 512 + lane_piece,
                          block(l) + (row << place.log_width) + in_block + lane % 4 * 4);
        }
      } else {
        const int k = r * 2 + lane / 16;
        const int l = lane % 16 * 4 / C::kLineRows;
        int s = slot[0];
#pragma unroll
        for (int other_line = 1; other_line < C::kLines; ++other_line) {
          if (l == other_line) s = slot[other_line];
        }
        if (s >= 0) {
          ptx::copy_async(at + static_cast<std::uint32_t>(k * 256 + lane % 16 * 16),
                          static_cast<const float*>(p.values) +
                              ((std::int64_t(s) * place.height) << place.log_width) +
                              (in_block + k) * place.height + place.m0 +
                              lane % 16 * 4 % C::kLineRows);
        }
      }
    }
    at += C::kRows * 64;
    const char* row =
        place.x +
        ((std::int64_t(place.first + other) << place.log_width) + in_block + lane % 4 * 4) * 4;
#pragma unroll
    for (int n = 0; n < C::kTilesN; ++n) {
      const bool there = n * 8 < place.tokens;
      ptx::copy_async(at + static_cast<std::uint32_t>(n) * 512 + lane_piece, there ? row : place.x,
                      there);
      row += place.ldx8;
    }
  }

  __device__ __forceinline__ void multiply(std::uint32_t at, Sums& sums) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    __syncwarp();  // of other lanes' copies
#pragma unroll 1
    for (int unit = 0; unit < 4; ++unit) {
      float b[C::kTilesN][4];
#pragma unroll
      for (int n = 0; n < C::kTilesN; ++n) {
        ptx::load_shared_x4(
            b[n], at + C::kRows * 64 + static_cast<std::uint32_t>(n) * 512 + piece(lane % 8, unit));
      }
      if constexpr (C::kKContiguous) {
#pragma unroll
        for (int j = 0; j < kDown; ++j) {
          if (C::kLines > 1 && (stored >> (4 * j / C::kLineRows) & 1) == 0) continue;
          float a[4];
          // Rows 4 j on are rows 8 (j / 2) on, or four further.
          ptx::load_shared_x4(
              a, at + static_cast<std::uint32_t>(j / 2) * 512 + piece(j % 2 * 4 + lane / 8, unit));
#pragma unroll
          for (int k = 0; k < 4; ++k) {
#pragma unroll
            for (int n = 0; n < C::kTilesN; ++n) sums.v[j][n] += a[k] * b[n][k];
          }
        }
      } else {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
#pragma unroll
          for (int q = 0; q < kDown / 4; ++q) {
            if (C::kLines > 1 && (stored >> (16 * q / C::kLineRows) & 1) == 0) continue;
            float a[4];
            ptx::load_shared_x4(
                a, at + static_cast<std::uint32_t>((unit * 4 + k) * 256 + q * 64 + lane / 8 * 16));
#pragma unroll
            for (int r = 0; r < 4; ++r) {
#pragma unroll
              for (int n = 0; n < C::kTilesN; ++n) sums.v[q * 4 + r][n] += a[r] * b[n][k];
            }
          }
        }
      }
    }
  }
};

/// The sums of a warp's steps of what is listed. Each step is loaded as soon as the one kDepth
/// before it is multiplied.
template <class C>
__device__ __forceinline__ void multiply_listed(const SpmmProblem& p, const Shared<C>& shared,
                                                const Place& place, int warp, int warps,
                                                std::uint32_t x, typename Step<C>::Sums& d) {
  // A step lies within a block.
  const int steps = (shared.positions.count << place.log_width) / C::kStepK;
  Step<C> step[C::kDepth];
  const auto at = [&](int i) { return x + static_cast<std::uint32_t>(i * C::kStepBytes); };
  const auto load = [&](int i, int s) {
    if (s < steps) step[i].load(p, shared, place, s, at(i));
    ptx::copy_commit();
  };
#pragma unroll
  for (int i = 0; i < C::kDepth; ++i) load(i, warp + i * warps);
  for (int s = warp; s < steps; s += C::kDepth * warps) {
#pragma unroll
    for (int i = 0; i < C::kDepth; ++i) {
      const int now = s + i * warps;
      if (now >= steps) break;
      ptx::copy_wait<C::kDepth - 1>();
      step[i].multiply(at(i), d);
      load(i, now + C::kDepth * warps);
    }
  }
}

__device__ __forceinline__ void store(const SpmmProblem& p, int token, int row, float v) {
  if (row >= p.out) return;
  if (p.bias != nullptr) v += static_cast<const float*>(p.bias)[row];
  const std::int64_t at = token * p.ldy + row;
  if (p.preactivation != nullptr) static_cast<float*>(p.preactivation)[at] = v;
  static_cast<float*>(p.y)[at] = activate(v, p.activation);
}

/// A cluster (before Hopper a CTA) computes one strip for all tokens; its warps take steps of K
/// in turn and their sums are added in the order of the warps.
template <class C>
__global__ void __launch_bounds__(C::kThreads, 2) strip_kernel(const SpmmProblem p, int log_width) {
  extern __shared__ __align__(16) char memory[];
  Shared<C>& shared = *reinterpret_cast<Shared<C>*>(memory);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int ctas = static_cast<int>(ptx::cluster_size());
  const int rank = static_cast<int>(blockIdx.x) % ctas;
  shared.positions.clear();
  __syncthreads();
  ptx::wait_for_kernels_before();
  const int height = static_cast<int>(p.height);
  int row0 = static_cast<int>(blockIdx.x) / ctas * C::kRows;
  // Long lines first.
  if (p.lines.order != nullptr) {
    const int per_tile = max(64, height) / C::kRows;
    const int place = static_cast<int>(blockIdx.x) / ctas;
    row0 = (p.lines.order[place / per_tile] * per_tile + place % per_tile) * C::kRows;
  }
  if (row0 >= p.out) return;  // of the last tile
  if (ctas > 1) ptx::cluster_arrive();

  typename Positions<C::kLines, C::kThreads>::Line lines[C::kLines];
#pragma unroll
  for (int l = 0; l < C::kLines; ++l) {
    const int line = row0 / height + l;
    const bool valid = line < p.lines.count;
    lines[l] = {valid ? p.lines.pointers[line] : 0, valid ? p.lines.pointers[line + 1] : 0};
  }
  Place place;
  place.x = static_cast<const char*>(p.x) + lane / 4 * p.ldx * 4;
  place.ldx8 = 8 * p.ldx * 4;
  place.tokens = static_cast<int>(p.tokens) - lane / 4;
  place.log_width = log_width;
  place.height = height;
  place.m0 = C::kLines == 1 ? row0 % height : 0;
  const std::uint32_t work = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared.work));
  const std::uint32_t x = work + static_cast<std::uint32_t>(warp * C::kDepth * C::kStepBytes);
  typename Step<C>::Sums d{};
  const int parts = shared.positions.parts(lines, static_cast<int>(p.in >> log_width));
  for (int part = 0; part < parts; ++part) {
    if (part > 0) {
      __syncthreads();  // all have read the part before
      shared.positions.clear();
      if (C::kLines > 1) __syncthreads();
    }
    place.first = shared.positions.fill(p.lines, lines, part);
    multiply_listed<C>(p, shared, place, rank * C::kWarps + warp, ctas * C::kWarps, x, d);
  }
  // Not earlier: CTAs of the next kernel would gather on the multiprocessors that have least to
  // do.
  ptx::allow_next_kernel();
  ptx::copy_wait<0>();
  __syncthreads();
  d.each([&](int row, int token, float v) {
    shared.work[(warp * C::kTokens + token) * C::kSumPitch + row] = v;
  });
  __syncthreads();

  const int thread = static_cast<int>(threadIdx.x);
  if (ctas > 1) {
    // Each CTA gets the sums of some of the tokens.
    const int share = C::kTokens / ctas;
    const std::uint32_t received =
        static_cast<std::uint32_t>(__cvta_generic_to_shared(shared.received));
    ptx::cluster_wait();  // all have started
    for (int e = thread; e < C::kTokens * C::kRows / 4; e += C::kThreads) {
      const int token = e / (C::kRows / 4);
      const int m = e % (C::kRows / 4) * 4;
      float4 v = make_float4(0, 0, 0, 0);
#pragma unroll
      for (int w = 0; w < C::kWarps; ++w) {
        const float4 part = *reinterpret_cast<const float4*>(
            &shared.work[(w * C::kTokens + token) * C::kSumPitch + m]);
        v.x += part.x, v.y += part.y, v.z += part.z, v.w += part.w;
      }
      const int to = (rank * share + token % share) * C::kRows + m;
      ptx::store_cluster_x4(received + static_cast<std::uint32_t>(to) * 4,
                            static_cast<unsigned>(token / share), v);
    }
    ptx::cluster_arrive();
    ptx::cluster_wait();
    for (int e = thread; e < share * C::kRows; e += C::kThreads) {
      const int token = rank * share + e / C::kRows;
      if (token >= p.tokens) break;
      float v = 0;
      for (int r = 0; r < ctas; ++r) v += shared.received[r * share * C::kRows + e];
      store(p, token, row0 + e % C::kRows, v);
    }
    return;
  }
  for (int e = thread; e < C::kTokens * C::kRows; e += C::kThreads) {
    const int token = e / C::kRows;
    const int m = e % C::kRows;
    if (token >= p.tokens) break;
    float v = 0;
#pragma unroll
    for (int w = 0; w < C::kWarps; ++w) {
      v += shared.work[(w * C::kTokens + token) * C::kSumPitch + m];
    }
    store(p, token, row0 + m, v);
  }
}

}  // namespace block_sparse::cuda::sm80::decode
