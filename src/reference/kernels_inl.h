// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "reference/kernels.h"

/// Included by one source per instruction set, which says the width of its
/// registers in BLOCK_SPARSE_VECTOR_BYTES. Internal linkage throughout.
namespace block_sparse::reference {
namespace {

// std::min has external linkage.
inline std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

template <class A>
struct VectorOf {
  // Vectors of the compiler's own: the same source serves every width.
  typedef A type __attribute__((vector_size(BLOCK_SPARSE_VECTOR_BYTES)));
};
template <class A>
using Vector = typename VectorOf<A>::type;

template <class A>
constexpr std::int64_t lanes = BLOCK_SPARSE_VECTOR_BYTES / sizeof(A);
/// Two vectors of tokens by four output features: eight accumulators and two
/// operands fit the 16 registers of the narrower sets and hide the latency of
/// multiply-add (4 cycles, 2 a cycle).
template <class A>
constexpr std::int64_t tile = 2 * lanes<A>;
constexpr int group = 4;

template <class A>
inline Vector<A> load(const A* aligned) {
  return *reinterpret_cast<const Vector<A>*>(aligned);
}
template <class A>
inline void store(A* aligned, Vector<A> v) {
  *reinterpret_cast<Vector<A>*>(aligned) = v;
}

/// Halves are added until one lane is left, in an order that every call shares.
template <class A>
inline A total(Vector<A> v) {
  A lane[lanes<A>];
  __builtin_memcpy(lane, &v, sizeof(v));
  for (std::int64_t half = lanes<A> / 2; half > 0; half /= 2) {
    for (std::int64_t l = 0; l < half; ++l) lane[l] += lane[l + half];
  }
  return lane[0];
}

/// G output features of one line, the first being feature `offset` of its blocks.
template <class A, int G>
void row_group(const Lines<A>& lines, const A* panel, std::int64_t line, std::int64_t offset,
               A* out) {
  Vector<A> sum[G][2] = {};
  for (std::int32_t b = lines.pointers[line]; b < lines.pointers[line + 1]; ++b) {
    const std::int64_t first = lines.indices[b] * lines.reduce_extent;
    const std::int64_t count = smaller(lines.reduce_extent, lines.reduce_size - first);
    const A* x = panel + first * tile<A>;
    const A* w = lines.values + lines.ids[b] * lines.block_elements + offset * lines.output_stride;
    for (std::int64_t k = 0; k < count; ++k) {
      const Vector<A> x0 = load(x);
      const Vector<A> x1 = load(x + lanes<A>);
      for (int g = 0; g < G; ++g) {
        sum[g][0] += w[g * lines.output_stride] * x0;
        sum[g][1] += w[g * lines.output_stride] * x1;
      }
      x += tile<A>;
      w += lines.reduce_stride;
    }
  }
  for (int g = 0; g < G; ++g) {
    store(out + g * tile<A>, sum[g][0]);
    store(out + g * tile<A> + lanes<A>, sum[g][1]);
  }
}

template <class A>
void rows(const Lines<A>& lines, const A* panel, std::int64_t first, std::int64_t count, A* out) {
  std::int64_t line = first / lines.line_extent;
  std::int64_t offset = first % lines.line_extent;
  while (count > 0) {
    const std::int64_t step = smaller(group, smaller(lines.line_extent - offset, count));
    switch (step) {
      case 4:
        row_group<A, 4>(lines, panel, line, offset, out);
        break;
      case 3:
        row_group<A, 3>(lines, panel, line, offset, out);
        break;
      case 2:
        row_group<A, 2>(lines, panel, line, offset, out);
        break;
      default:
        row_group<A, 1>(lines, panel, line, offset, out);
    }
    out += step * tile<A>;
    count -= step;
    offset += step;
    if (offset == lines.line_extent) {
      offset = 0;
      ++line;
    }
  }
}

/// G x H sums over t; a and b point at their first rows.
template <class A, int G, int H>
void dot_group(const A* a, const A* b, std::int64_t length, A* out, std::int64_t ldo) {
  Vector<A> sum[G][H] = {};
  for (std::int64_t t = 0; t < length; t += lanes<A>) {
    Vector<A> bt[H];
    for (int h = 0; h < H; ++h) bt[h] = load(b + h * length + t);
    for (int g = 0; g < G; ++g) {
      const Vector<A> at = load(a + g * length + t);
      for (int h = 0; h < H; ++h) sum[g][h] += at * bt[h];
    }
  }
  for (int g = 0; g < G; ++g) {
    for (int h = 0; h < H; ++h) {
      out[g * ldo + h] += total<A>(sum[g][h]);
    }
  }
}

template <class A, int G>
void dot_rows(const A* a, const A* b, std::int64_t nb, std::int64_t length, A* out,
              std::int64_t ldo) {
  std::int64_t j = 0;
  for (; j + 2 <= nb; j += 2) dot_group<A, G, 2>(a, b + j * length, length, out + j, ldo);
  if (j < nb) dot_group<A, G, 1>(a, b + j * length, length, out + j, ldo);
}

template <class A>
void dots(const A* a, std::int64_t na, const A* b, std::int64_t nb, std::int64_t length, A* out,
          std::int64_t ldo) {
  std::int64_t i = 0;
  for (; i + group <= na; i += group) {
    dot_rows<A, group>(a + i * length, b, nb, length, out + i * ldo, ldo);
  }
  for (; i < na; ++i) dot_rows<A, 1>(a + i * length, b, nb, length, out + i * ldo, ldo);
}

}  // namespace
}  // namespace block_sparse::reference
