// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/epilogue/activation.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/sm80/spmm/config.cuh"
#include "cuda/sm80/spmm/lists.cuh"

namespace block_sparse::cuda::sm80::spmm {

template <class C>
struct Shared {
  alignas(128) unsigned char buffers[C::kStages * C::kStageTotal];
  alignas(16) unsigned char slabs[C::kSlabsInStage ? 16 : C::kSlabsBytes];
  List<C::kHeight, C::kLines> list;
};

/// Starts copying stage `s` of a window: 64 bytes along K of its blocks laid end
/// to end. Nothing is made zero: tokens behind the last are copies of it, whose sums
/// are not stored; what lies behind the last entry is one of its own again, and what
/// a line does not store stays as it was; neither is multiplied.
template <class C>
__device__ __forceinline__ void load_stage(const Params& p, const Shared<C>& shared,
                                           std::uint32_t stage, int s, int entries, int token0) {
  using T = typename C::Element;
  constexpr int kUnits = C::kStageBytes / 16;
  constexpr int kRowsAtOnce = C::kThreads / kUnits;
  const int thread = static_cast<int>(threadIdx.x);
  const int width = 1 << p.log_width;
  const typename C::XTile x_tile{stage};

  // This thread's unit along k of every row.
  const int unit = thread % kUnits;
  const int first_row = thread / kUnits;
  const int k = s * C::kStageK + unit * C::kUnit;
  const int entry = min(k >> p.log_width, entries - 1);
  const int in_block = k & (width - 1);
  const T* x =
      static_cast<const T*>(p.x) + std::int64_t(shared.list.position_of(entry)) * width + in_block;
  if (token0 + C::kTokens <= p.tokens) {
    const T* from = x + (token0 + first_row) * p.ldx;
#pragma unroll
    for (int row = 0; row < C::kTokens; row += kRowsAtOnce) {
      ptx::copy_async(x_tile.from(row).unit(first_row, unit), from);
      from += kRowsAtOnce * p.ldx;
    }
  } else {
#pragma unroll 2
    for (int row = first_row; row < C::kTokens; row += kRowsAtOnce) {
      ptx::copy_async(x_tile.unit(row, unit), x + min(token0 + row, p.tokens - 1) * p.ldx);
    }
  }

  const T* values = static_cast<const T*>(p.values);
  const std::int64_t block = std::int64_t(C::kHeight) << p.log_width;
  const std::uint32_t w_stage = stage + C::kXBytes;
  if constexpr (C::kMContiguous) {
    constexpr int kUnitsOut = C::kHeight / C::kUnit;
    constexpr int kLineUnits = C::kStageK * kUnitsOut;
    constexpr int kCopies = C::kLines * kLineUnits;
#pragma unroll
    for (int i = 0; i < (kCopies + C::kThreads - 1) / C::kThreads; ++i) {
      const int e = thread + i * C::kThreads;
      if (kCopies % C::kThreads != 0 && e >= kCopies) break;
      const int line = e / kLineUnits;
      const int row = e % kLineUnits / kUnitsOut;
      const int of_row = s * C::kStageK + row;
      const int slot = shared.list.slot(line, min(of_row >> p.log_width, entries - 1));
      if (C::kLines > 1 && slot < 0) continue;
      const T* from = values + slot * block + (of_row & (width - 1)) * C::kHeight;
      const typename C::WTile tile{w_stage + line * C::kLineBytes};
      ptx::copy_async(tile.unit(row, e % kUnitsOut), from + e % kUnitsOut * C::kUnit);
    }
  } else {
    constexpr int kRows = C::kOuts;
#pragma unroll
    for (int i = 0; i < (kRows + kRowsAtOnce - 1) / kRowsAtOnce; ++i) {
      const int out = first_row + i * kRowsAtOnce;
      if (kRows % kRowsAtOnce != 0 && out >= kRows) break;
      const int line = out / C::kHeight;
      const int row = out % C::kHeight;
      const int slot = shared.list.slot(line, entry);
      if (C::kLines > 1 && slot < 0) continue;
      const typename C::WTile tile{w_stage + line * C::kLineBytes};
      ptx::copy_async(tile.unit(row, unit), values + slot * block + row * width + in_block);
    }
  }
}

/// The products of a step with those lines that `bits` names.
template <class C, int... Line>
__device__ __forceinline__ void multiply_lines(typename C::Product& product,
                                               const std::uint32_t (&a)[C::kWarpTokens / 16][4],
                                               std::uint32_t w_stage, int step, unsigned bits,
                                               std::integer_sequence<int, Line...>) {
  const auto one = [&]<int L>(std::integral_constant<int, L>) {
    if ((bits >> L & 1) == 0) return;
    const typename C::WTile w{w_stage + L * C::kLineBytes};
    product.template multiply_loaded<L * C::kHeight, C::kHeight>(a, w, 0, step);
  };
  (one(std::integral_constant<int, Line>()), ...);
}

template <class C>
__device__ __forceinline__ void multiply_stage(typename C::Product& product, const Params& p,
                                               const Shared<C>& shared, std::uint32_t stage, int s,
                                               int entries) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int row = warp / C::kWarpsAcross * C::kWarpTokens;
  const int col = warp % C::kWarpsAcross * C::kWarpOuts;
  const typename C::XTile x{stage};
  if constexpr (C::kLines == 1) {
    const typename C::WTile w{stage + C::kXBytes};
    const int k_left = (entries << p.log_width) - s * C::kStageK;
    if (k_left >= C::kStageK) {
#pragma unroll C::Product::kUnroll
      for (int step = 0; step < C::kSteps; ++step) product.multiply(x, row, w, col, step);
    } else {
#pragma unroll 1
      for (int step = 0; step * C::kStepK < k_left; ++step) product.multiply(x, row, w, col, step);
    }
  } else {
#pragma unroll
    for (int step = 0; step < C::kSteps; ++step) {
      const int entry = (s * C::kStageK + step * C::kStepK) >> p.log_width;
      if (entry >= entries) break;
      // The same in all lanes, which the compiler cannot see.
      const unsigned bits = __shfl_sync(~0u, static_cast<unsigned>(shared.list.bits[entry]), 0);
      std::uint32_t a[C::kWarpTokens / 16][4];
      C::Product::load_a(x, row, step, a);
      multiply_lines<C>(product, a, stage + C::kXBytes, step, bits,
                        std::make_integer_sequence<int, C::kLines>());
    }
  }
}
template <class T, int N>
__device__ __forceinline__ void store_unit(T* to, const float (&v)[N]) {
  if constexpr (N == 4) {
    *reinterpret_cast<float4*>(to) = make_float4(v[0], v[1], v[2], v[3]);
  } else {
    *reinterpret_cast<uint4*>(to) =
        make_uint4(narrow_pair<T>(v[0], v[1]), narrow_pair<T>(v[2], v[3]),
                   narrow_pair<T>(v[4], v[5]), narrow_pair<T>(v[6], v[7]));
  }
}

/// Bias, preactivation, activation and the rows of y, 16 tokens of a warp at a
/// time through shared memory, after which every store is 16 bytes.
template <class C>
__device__ __forceinline__ void store_tile(const typename C::Product& product, const Params& p,
                                           float* slab, int group, int token0) {
  using T = typename C::Element;
  constexpr int kUnits = C::kWarpOuts / C::kUnit;  // in a warp's row
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int col = warp % C::kWarpsAcross * C::kWarpOuts + lane % kUnits * C::kUnit;
  const int line = line_of<C::kHeight, C::kLines>(p.lines, group, col / C::kHeight);
  const bool exists = line < p.lines.count;
  const std::int64_t out = std::int64_t(line) * C::kHeight + col % C::kHeight;
  float bias[C::kUnit] = {};
  if (exists && p.bias != nullptr) {
#pragma unroll
    for (int i = 0; i < C::kUnit; ++i) bias[i] = widen(static_cast<const T*>(p.bias)[out + i]);
  }
  const int first = token0 + warp / C::kWarpsAcross * C::kWarpTokens;
#pragma unroll
  for (int s = 0; s < C::kWarpTokens / 16; ++s) {
    product.template write_slab<typename C::XTile, typename C::WTile>(s, slab, C::kSlabStride);
    __syncwarp();
#pragma unroll 1  // four activations for each of its values are code enough
    for (int row = lane / kUnits; row < 16; row += 32 / kUnits) {
      const std::int64_t token = first + s * 16 + row;
      if (!exists || token >= p.tokens) continue;
      float v[C::kUnit];
#pragma unroll
      for (int i = 0; i < C::kUnit; i += 4) {
        const auto four = *reinterpret_cast<const float4*>(slab + row * C::kSlabStride +
                                                           lane % kUnits * C::kUnit + i);
        v[i] = four.x + bias[i], v[i + 1] = four.y + bias[i + 1];
        v[i + 2] = four.z + bias[i + 2], v[i + 3] = four.w + bias[i + 3];
      }
      const std::int64_t at = token * p.ldy + out;
      if (p.preactivation != nullptr) store_unit(static_cast<T*>(p.preactivation) + at, v);
      if (p.activation != Activation::none) {
#pragma unroll
        for (float& value : v) value = activate(value, p.activation);
      }
      store_unit(static_cast<T*>(p.y) + at, v);
    }
    __syncwarp();
  }
}
/// A CTA computes a group of lines for several tiles of tokens, one after the other:
/// the first stages of the next are on their way while the sums of one are stored.
/// CTAs in order: all groups, heaviest first, for a few runs of tiles, then the next.
template <class C>
__global__ void __launch_bounds__(C::kThreads, C::kCtas) kernel(const Params p) {
  extern __shared__ __align__(128) unsigned char raw[];
  Shared<C>& shared = *reinterpret_cast<Shared<C>*>(raw);
  const std::uint32_t base = ptx::shared_address(shared.buffers);
  const int item = static_cast<int>(blockIdx.x);
  const int round = item / (p.groups * p.runs_in_flight);
  const int rest = item - round * p.groups * p.runs_in_flight;
  const int wide = min(p.runs_in_flight, p.runs - round * p.runs_in_flight);
  const int group = rest / wide;
  const int first_tile = (round * p.runs_in_flight + rest % wide) * p.tiles_a_run;
  const int tiles = min(p.tiles_a_run, p.token_tiles - first_tile);

  auto cursor = shared.list.start(p.lines, group, p.positions);
  int entries = shared.list.fill(p.lines, cursor);
  // A list of several windows is gone through again for each tile.
  const int at_once = cursor.more() ? 1 : tiles;
  for (int done = 0; done < tiles; done += at_once) {
    if (done > 0) {
      cursor = shared.list.start(p.lines, group, p.positions);
      entries = shared.list.fill(p.lines, cursor);
    }
    typename C::Product product;
    for (;;) {
      const int stages = ((entries << p.log_width) + C::kStageK - 1) / C::kStageK;
      int buffer_to_load = 0;
      int tile_to_load = stages > 0 ? 0 : at_once;
      int stage_to_load = 0;
      const auto load_next = [&] {
        if (tile_to_load < at_once) {
          load_stage<C>(p, shared, base + buffer_to_load * C::kStageTotal, stage_to_load, entries,
                        (first_tile + done + tile_to_load) * C::kTokens);
          buffer_to_load = buffer_to_load + 1 == C::kStages ? 0 : buffer_to_load + 1;
          if (++stage_to_load == stages) stage_to_load = 0, ++tile_to_load;
        }
        ptx::copy_commit();  // in any case, so that the count of groups stays the same
      };
      for (int s = 0; s < C::kStages - 1; ++s) load_next();
      int buffer = 0;
      for (int tile = 0; tile < at_once; ++tile) {
        for (int s = 0; s < stages; ++s) {
          ptx::copy_wait<C::kStages - 2>();
          __syncthreads();
          load_next();
          multiply_stage<C>(product, p, shared, base + buffer * C::kStageTotal, s, entries);
          buffer = buffer + 1 == C::kStages ? 0 : buffer + 1;
        }
        if (cursor.more()) continue;
        unsigned char* slabs = shared.slabs;
        if constexpr (C::kSlabsInStage) {
          // The buffer that was multiplied last is not loaded before the next barrier.
          __syncthreads();
          slabs = shared.buffers + (buffer == 0 ? C::kStages - 1 : buffer - 1) * C::kStageTotal;
        }
        store_tile<C>(product, p,
                      reinterpret_cast<float*>(slabs + threadIdx.x / 32 * C::kSlabBytes), group,
                      (first_tile + done + tile) * C::kTokens);
        product = {};
      }
      ptx::copy_wait<0>();
      __syncthreads();  // the stages and the window have been read
      if (!cursor.more()) break;
      entries = shared.list.fill(p.lines, cursor);
    }
  }
}

}  // namespace block_sparse::cuda::sm80::spmm
