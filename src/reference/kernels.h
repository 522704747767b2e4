// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "block_sparse/cpu_features.h"

/// The inner loops of the reference products, compiled once per instruction
/// set. A is float or double: 16-bit operands have been widened before.
namespace block_sparse::reference {

/// One orientation of a pattern and its values: output features are cut into
/// lines of `line_extent`, each a list of blocks that reduce over
/// `reduce_extent` features. Forward: lines are block rows; input gradient:
/// block columns.
template <class A>
struct Lines {
  const std::int32_t* pointers;  // (lines + 1)
  const std::int32_t* indices;   // which block of reduced features
  const std::int32_t* ids;       // slot in values
  const A* values;
  std::int64_t line_extent;
  std::int64_t reduce_extent;
  std::int64_t output_size;     // features; the last line may be shorter
  std::int64_t reduce_size;     // features; the last block may be narrower
  std::int64_t block_elements;  // bh * bw
  std::int64_t output_stride;   // in a block, between output features
  std::int64_t reduce_stride;   // in a block, between reduced features
};

/// The largest `tile`: two registers of 64 bytes.
template <class A>
constexpr std::int64_t max_tile = 128 / sizeof(A);

template <class A>
struct Kernels {
  /// Tokens that one call of `rows` computes.
  std::int64_t tile;
  /// out (count, tile) = output features [first, first + count) of all tokens of
  /// the panel (reduce_size, tile). Both are aligned to `tile` elements.
  void (*rows)(const Lines<A>& lines, const A* panel, std::int64_t first, std::int64_t count,
               A* out);
  /// out[i * ldo + j] += sum over t of a[i, t] b[j, t]; a (na, length) and
  /// b (nb, length) are aligned to `tile` elements, of which length is a multiple.
  void (*dots)(const A* a, std::int64_t na, const A* b, std::int64_t nb, std::int64_t length,
               A* out, std::int64_t ldo);
};

extern const Kernels<float> baseline_f32;
extern const Kernels<double> baseline_f64;
#if defined(__x86_64__)
extern const Kernels<float> avx2_f32;
extern const Kernels<double> avx2_f64;
extern const Kernels<float> avx512_f32;
extern const Kernels<double> avx512_f64;
#endif

/// The widest that a processor with `features` runs.
template <class A>
const Kernels<A>& choose_kernels(cpu::Features features);
template <>
const Kernels<float>& choose_kernels<float>(cpu::Features features);
template <>
const Kernels<double>& choose_kernels<double>(cpu::Features features);

}  // namespace block_sparse::reference
