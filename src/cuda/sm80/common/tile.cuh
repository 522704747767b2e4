// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace block_sparse::cuda::sm80 {

/// How the 16-byte units of a row in shared memory are permuted.
enum class Swizzle {
  none,
  rows,   // eight rows at the same unit lie in different banks: ldmatrix
  pairs,  // so do four rows at the same two units: words read by k and column
};

/// A stage's operand in shared memory. KContiguous: a row holds the stage's k of
/// one feature (or token); else all features of one k. Bytes: of a row.
template <bool KContiguous, int Bytes, Swizzle Kind>
struct Tile {
  static constexpr bool kKContiguous = KContiguous;
  static constexpr int kRowBytes = Bytes;
  std::uint32_t base;

  /// The tile from a row on, a multiple of 8: eight rows further units are permuted
  /// alike, so that many addresses differ by a constant only.
  __device__ __forceinline__ Tile from(int row) const {
    return {base + static_cast<std::uint32_t>(row * Bytes)};
  }
  /// The address of a 16-byte unit of a row.
  __device__ __forceinline__ std::uint32_t unit(unsigned row, unsigned u) const {
    constexpr unsigned kRowsALine = Bytes >= 128 ? 1 : 128 / Bytes;
    constexpr unsigned kMask = (Bytes >= 128 ? 8 : Bytes / 16) - 1;
    unsigned turn = 0;
    if constexpr (Kind == Swizzle::rows) turn = row / kRowsALine & kMask;
    if constexpr (Kind == Swizzle::pairs) turn = (row / kRowsALine & kMask / 2) * 2;
    return base + row * Bytes + ((u ^ turn) << 4);
  }
};

/// The tile of a math's operand: `Features` of it and `StageBytes` of k.
template <class Math, bool KContiguous, int Features, int StageBytes>
using TileOf =
    Tile<KContiguous, KContiguous ? StageBytes : Features* int{sizeof(typename Math::Element)},
         KContiguous ? Swizzle::rows : Math::kFeatureSwizzle>;

}  // namespace block_sparse::cuda::sm80
