// SPDX-License-Identifier: Apache-2.0
#include "cuda/sm80/sddmm/sddmm.h"

#include <algorithm>
#include <limits>

#include "cuda/common/device.h"
#include "cuda/ptx/matrix.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/sddmm/finish.h"
#include "cuda/sddmm/output.cuh"
#include "cuda/sddmm/work.cuh"

namespace block_sparse::cuda::sm80::sddmm {
namespace {

constexpr int kThreads = 128;
constexpr int kColumns = 128;     // of x in a CTA, gathered from several blocks
constexpr int kWarpColumns = 32;  // N of a warp
constexpr int kStageTokens = 32;  // K of a stage
constexpr int kStages = 4;
constexpr int kCtas = 4;  // a multiprocessor
// Rows of shared memory are 16 bytes longer than their data, so that the eight
// rows that ldmatrix reads at once lie in different banks.
constexpr int kPad = 16;

/// Rows: block rows of a CTA's tile (16, 32, 64; 128 is cut in two). Width: of a
/// block.
template <class Element_, int Rows_, int Width_>
struct Config {
  using Element = Element_;
  static constexpr int kRows = Rows_;
  static constexpr int kWidth = Width_;
  static constexpr int kBlocks = kColumns / kWidth;
  static constexpr int kDyStride = kRows * 2 + kPad;
  static constexpr int kXStride = kColumns * 2 + kPad;
  static constexpr int kDyBytes = kStageTokens * kDyStride;
  static constexpr int kStageBytes = kDyBytes + kStageTokens * kXStride;
  static constexpr int kBytes = kStages * kStageBytes;
};

struct Params {
  SddmmPieces pieces;
  const std::int32_t* cols;
  const std::int32_t* ids;
  int height;  // of a whole block
  const void* dy;
  std::int64_t lddy;
  const void* x;
  std::int64_t ldx;
  SddmmOutput output;
};

/// Starts copying a stage's tokens [token, token + 32); those at or beyond
/// `end` and the columns of missing blocks become 0.
template <class C>
__device__ __forceinline__ void load_stage(const Params& p, std::uint32_t stage, int token, int end,
                                           std::int64_t row0, std::int64_t col, bool has_col) {
  using T = typename C::Element;
  constexpr int kDyUnits = C::kRows / 8;  // of 16 bytes, in a row
  constexpr int kXUnits = kColumns / 8;
  const int t = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int i = t; i < kStageTokens * kDyUnits; i += kThreads) {
    const int row = i / kDyUnits;
    const int unit = i % kDyUnits;
    const bool valid = token + row < end;
    const T* from =
        static_cast<const T*>(p.dy) + (valid ? (token + row) * p.lddy : 0) + row0 + unit * 8;
    ptx::copy_async(stage + row * C::kDyStride + unit * 16, from, valid);
  }
#pragma unroll
  for (int i = 0; i < kStageTokens * kXUnits / kThreads; ++i) {
    const int row = t / kXUnits + i * (kThreads / kXUnits);
    const bool valid = has_col && token + row < end;
    const T* from = static_cast<const T*>(p.x) + (valid ? (token + row) * p.ldx + col : 0);
    ptx::copy_async(stage + C::kDyBytes + row * C::kXStride + t % kXUnits * 16, from, valid);
  }
  ptx::copy_commit();
}

/// Rows x 128 elements of dvalues: one block row (or half of it) times the
/// blocks of a piece, each warp 32 columns.
template <class C>
__global__ void __launch_bounds__(kThreads, kCtas) kernel(const Params p) {
  using T = typename C::Element;
  constexpr int kTilesM = C::kRows / 16;
  constexpr int kTilesN = kWarpColumns / 8;
  extern __shared__ __align__(16) unsigned char shared[];
  const std::uint32_t base = ptx::shared_address(shared);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_column = static_cast<int>(threadIdx.x) / 32 * kWarpColumns;
  const int halves = p.height / C::kRows;

  SddmmWork work;
  for (int item = blockIdx.x; find_work<C::kBlocks>(p.pieces, item / halves, &work);
       item += gridDim.x) {
    const int m0 = item % halves * C::kRows;
    const std::int64_t row0 = std::int64_t(work.line) * p.height + m0;
    // This thread copies 8 columns of one block.
    const int column = static_cast<int>(threadIdx.x) % (kColumns / 8) * 8;
    const int block = column / C::kWidth;
    const bool has_col = block < work.count;
    const std::int64_t col =
        has_col ? std::int64_t(p.cols[work.first + block]) * C::kWidth + column % C::kWidth : 0;
    const TokenRange tokens = tokens_of(p.pieces, work.split);
    const int stages = (tokens.end - tokens.begin + kStageTokens - 1) / kStageTokens;
    const bool multiplies = warp_column / C::kWidth < work.count;
    const auto load = [&](int s) {
      if (s < stages) {
        load_stage<C>(p, base + s % kStages * C::kStageBytes, tokens.begin + s * kStageTokens,
                      tokens.end, row0, col, has_col);
      } else {
        ptx::copy_commit();  // so that the count of groups stays the same
      }
    };

    float d[kTilesM][kTilesN][4] = {};
    __syncthreads();  // the last piece's stages have been read
    for (int s = 0; s < kStages - 1; ++s) load(s);
    for (int s = 0; s < stages; ++s) {
      ptx::copy_wait<kStages - 2>();
      __syncthreads();
      load(s + kStages - 1);
      if (!multiplies) continue;
      const std::uint32_t dy = base + s % kStages * C::kStageBytes;
      const std::uint32_t x = dy + C::kDyBytes;
#pragma unroll
      for (int k = 0; k < kStageTokens; k += 16) {
        // Matrices (rows low, high) x (tokens low, high) of dyᵀ: tokens are the
        // rows of shared memory, so all are read transposed.
        std::uint32_t a[kTilesM][4];
#pragma unroll
        for (int m = 0; m < kTilesM; ++m) {
          ptx::load_matrix_x4_transposed(a[m], dy + (k + lane % 8 + lane / 16 * 8) * C::kDyStride +
                                                   m * 32 + lane / 8 % 2 * 16);
        }
#pragma unroll
        for (int n = 0; n < kTilesN; n += 2) {
          std::uint32_t b[4];
          ptx::load_matrix_x4_transposed(
              b, x + (k + lane % 16) * C::kXStride + (warp_column + n * 8) * 2 + lane / 16 * 16);
#pragma unroll
          for (int m = 0; m < kTilesM; ++m) {
            ptx::mma_16x8x16<T>(d[m][n], a[m], b[0], b[1]);
            ptx::mma_16x8x16<T>(d[m][n + 1], a[m], b[2], b[3]);
          }
        }
      }
    }
    ptx::copy_wait<0>();
#pragma unroll
    for (int n = 0; n < kTilesN; ++n) {
      const int at_column = warp_column + n * 8;
      const int of_block = at_column / C::kWidth;
      if (of_block >= work.count) continue;
      const int slot = p.ids[work.first + of_block];
#pragma unroll
      for (int m = 0; m < kTilesM; ++m) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int row = m0 + m * 16 + h * 8 + lane / 4;
          const int at = row * C::kWidth + at_column % C::kWidth + lane % 4 * 2;
          p.output.template store<T>(work.split, slot, at, d[m][n][2 * h], d[m][n][2 * h + 1]);
        }
      }
    }
  }
  p.output.template clear_spare<T>(p.ids, p.pieces.crow[p.pieces.lines]);
}

int rows_of(const WeightGradientArgs& a) {
  return static_cast<int>(std::min<std::int64_t>(a.pattern.block_height, 64));
}

/// Pieces of work if every slot is used and lines hold whole pieces.
std::int64_t pieces_of(const WeightGradientArgs& a) {
  const std::int64_t blocks = kColumns / a.pattern.block_width;
  return std::max<std::int64_t>(
      (a.pattern.slots + blocks - 1) / blocks * (a.pattern.block_height / rows_of(a)), 1);
}

Splits splits_of(const WeightGradientArgs& a, const Device& device, std::size_t bytes) {
  return choose_splits(a, pieces_of(a), kStageTokens, device.multiprocessors * kCtas, bytes);
}

template <class C>
Status launch(const WeightGradientArgs& a, Stream stream) {
  const PatternView& w = a.pattern;
  Device device;
  Status s = current_device(&device);
  if (s.ok()) s = allow_shared_memory(kernel<C>, C::kBytes);
  if (!s.ok()) return s;
  const Splits splits = splits_of(a, device, a.workspace.data == nullptr ? 0 : a.workspace.bytes);
  const Params params{
      {w.crow_indices, static_cast<int>(w.n_block_rows()), static_cast<int>(a.tokens), splits.count,
       splits.tokens},
      w.col_indices,
      w.block_ids,
      static_cast<int>(w.block_height),
      a.dy,
      a.lddy,
      a.x,
      a.ldx,
      {a.dvalues, splits.count > 1 ? static_cast<float*>(a.workspace.data) : nullptr, w.slots,
       static_cast<int>(w.block_height * w.block_width), a.out_dtype == DataType::f32,
       a.accumulate}};
  kernel<C><<<static_cast<unsigned>(device.multiprocessors * kCtas), kThreads, C::kBytes, stream>>>(
      params);
  s = to_status(cudaGetLastError(), "launching the portable weight gradient kernel");
  return s.ok() ? finish_weight_gradient(a, splits.count, stream) : s;
}

template <class Element, int Rows>
Status launch_width(const WeightGradientArgs& a, Stream stream) {
  switch (a.pattern.block_width) {
    case 16:
      return launch<Config<Element, Rows, 16>>(a, stream);
    case 32:
      return launch<Config<Element, Rows, 32>>(a, stream);
    case 64:
      return launch<Config<Element, Rows, 64>>(a, stream);
    default:
      return launch<Config<Element, Rows, 128>>(a, stream);
  }
}

template <class Element>
Status launch_rows(const WeightGradientArgs& a, Stream stream) {
  switch (rows_of(a)) {
    case 16:
      return launch_width<Element, 16>(a, stream);
    case 32:
      return launch_width<Element, 32>(a, stream);
    default:
      return launch_width<Element, 64>(a, stream);
  }
}

bool is_side(std::int64_t side) { return side == 16 || side == 32 || side == 64 || side == 128; }

}  // namespace

const char* refusal(const WeightGradientArgs& a) {
  const PatternView& w = a.pattern;
  if (a.dtype != DataType::bf16 && a.dtype != DataType::f16) return "not a 16-bit type";
  if (!is_side(w.block_height) || !is_side(w.block_width)) {
    return "a side of the blocks is not 16, 32, 64 or 128";
  }
  if (w.rows % w.block_height != 0 || w.cols % w.block_width != 0) {
    return "features are not whole blocks";
  }
  if (a.tokens < 1 || a.tokens > 0x7fff0000) return "no tokens, or too many";
  if (w.slots > 0x7fffffff / 16) return "too many slots";
  if (reinterpret_cast<std::uintptr_t>(a.dy) % 16 != 0 ||
      reinterpret_cast<std::uintptr_t>(a.x) % 16 != 0 || a.lddy % 8 != 0 || a.ldx % 8 != 0) {
    return "rows are not 16-byte aligned";
  }
  return nullptr;
}

Status run(const WeightGradientArgs& a, Stream stream) {
  return a.dtype == DataType::bf16 ? launch_rows<bf16>(a, stream) : launch_rows<f16>(a, stream);
}

std::size_t workspace(const WeightGradientArgs& a) {
  Device device;
  if (!current_device(&device).ok()) return 0;
  return partial_bytes(a, splits_of(a, device, std::numeric_limits<std::size_t>::max()).count);
}

}  // namespace block_sparse::cuda::sm80::sddmm
