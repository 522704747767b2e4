// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "cpu/simd/elements.h"
#include "cpu/spmm/ends.h"
#include "cpu/spmm/spmm.h"

/// Forward for few tokens, where packing W would cost more than using it: dot
/// products along the reduced features, W read once, where it lies. Included by
/// one source per instruction set.
namespace block_sparse::cpu::spmm {
namespace {

/// Outputs whose sums wait in scratch for the activation.
constexpr std::int64_t decode_group = 64;

struct DecodeScratch {
  alignas(64) float sums[decode_tokens * decode_group];
  alignas(64) float start[decode_group];
};

inline std::size_t decode_scratch_bytes(const Operands&) { return sizeof(DecodeScratch); }

/// Dot products of `outputs` rows of one line with `tokens` rows of A, all of
/// whose accumulators are in registers.
template <class V, class T>
struct DotArgs {
  const Operands* operands;
  std::int64_t line;
  const T* values;     // of slot 0, at the first output
  const float* a;      // at the first token
  const float* start;  // at the first output
  float* sums;         // (tokens, decode_group) at the first output and token
};

template <class V, class T, int outputs, int tokens>
void dots(const DotArgs<V, T>& args) {
  using Float = typename V::Float;
  const Operands& op = *args.operands;
  const std::int64_t size = op.line_extent * op.reduce_extent;
  const std::int64_t ldw = op.reduce_extent;
  const std::int64_t lda = op.lda;
  Float sum[outputs][tokens];
#pragma GCC unroll 8
  for (int o = 0; o < outputs; ++o) {
#pragma GCC unroll 8
    for (int t = 0; t < tokens; ++t) sum[o][t] = V::zero();
  }
  for (std::int64_t i = op.pointers[args.line]; i < op.pointers[args.line + 1]; ++i) {
    const std::int64_t feature = op.indices[i] * op.reduce_extent;
    const std::int64_t length = smaller(op.reduce_extent, op.reduced - feature);
    const T* w = args.values + op.ids[i] * size;
    const float* a = args.a + feature;
    std::int64_t k = 0;
    for (; k + V::lanes <= length; k += V::lanes) {
      Float x[tokens];
#pragma GCC unroll 8
      for (int t = 0; t < tokens; ++t) x[t] = V::load(a + t * lda + k);
#pragma GCC unroll 8
      for (int o = 0; o < outputs; ++o) {
        const Float row = V::load(w + o * ldw + k);
#pragma GCC unroll 8
        for (int t = 0; t < tokens; ++t) sum[o][t] = V::fma(row, x[t], sum[o][t]);
      }
    }
    if (k < length) {
      const int rest = static_cast<int>(length - k);
#pragma GCC unroll 8
      for (int o = 0; o < outputs; ++o) {
        const Float row = V::load_part(w + o * ldw + k, rest);
#pragma GCC unroll 8
        for (int t = 0; t < tokens; ++t) {
          sum[o][t] = V::fma(row, V::load_part(a + t * lda + k, rest), sum[o][t]);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int o = 0; o < outputs; ++o) {
#pragma GCC unroll 8
    for (int t = 0; t < tokens; ++t) {
      args.sums[t * decode_group + o] = args.start[o] + V::sum(sum[o][t]);
    }
  }
}

/// Tokens in nearly equal parts of at most V::dot_tokens. One token has twice the
/// outputs, or its accumulators would not hide the latency of FMA.
template <class V, class T>
class Dots {
 public:
  static constexpr int outputs_of(std::int64_t tokens) { return tokens == 1 ? 8 : 4; }

  /// outputs_of(tokens) outputs.
  static void run(std::int64_t tokens, const DotArgs<V, T>& args) {
    functions(std::make_integer_sequence<int, V::dot_tokens>())[tokens - 1](args);
  }
  /// One output, where a ragged line has no more: its padding is not read.
  static void run_one(std::int64_t tokens, const DotArgs<V, T>& args) {
    single_functions(std::make_integer_sequence<int, V::dot_tokens>())[tokens - 1](args);
  }

 private:
  using Function = void (*)(const DotArgs<V, T>&);

  template <int... index>
  static const Function* functions(std::integer_sequence<int, index...>) {
    static constexpr Function table[] = {dots<V, T, outputs_of(index + 1), index + 1>...};
    return table;
  }
  template <int... index>
  static const Function* single_functions(std::integer_sequence<int, index...>) {
    static constexpr Function table[] = {dots<V, T, 1, index + 1>...};
    return table;
  }
};

template <class V, class T>
void decode_line(const Operands& op, std::int64_t line, Range tokens, DecodeScratch& scratch) {
  const std::int64_t extent = smaller(op.line_extent, op.outputs - line * op.line_extent);
  const std::int64_t count = tokens.end - tokens.begin;
  const std::int64_t parts = (count + V::dot_tokens - 1) / V::dot_tokens;
  for (std::int64_t first = 0; first < extent; first += decode_group) {
    const std::int64_t output = line * op.line_extent + first;
    const std::int64_t valid = smaller(decode_group, extent - first);
    load_bias<V, T>(op, output, valid, decode_group, scratch.start);
    const std::int64_t several = Dots<V, T>::outputs_of(count);
    for (std::int64_t o = 0; o < valid;) {
      const bool whole = o + several <= valid;
      // All tokens while these rows of W are in L1.
      for (std::int64_t part = 0; part < parts; ++part) {
        const std::int64_t begin = count * part / parts;
        const std::int64_t length = count * (part + 1) / parts - begin;
        DotArgs<V, T> args;
        args.operands = &op;
        args.line = line;
        args.values = static_cast<const T*>(op.values) + (first + o) * op.reduce_extent;
        args.a = static_cast<const float*>(op.a) + (tokens.begin + begin) * op.lda;
        args.start = scratch.start + o;
        args.sums = scratch.sums + begin * decode_group + o;
        if (whole) {
          Dots<V, T>::run(length, args);
        } else {
          Dots<V, T>::run_one(length, args);
        }
      }
      o += whole ? several : 1;
    }
    finish<V, T>(op, tokens, output, valid, scratch.sums, decode_group);
  }
}

template <class V, class T>
void decode_of(const Operands& op, Range lines, Range tokens, void* scratch) {
  for (std::int64_t line = lines.begin; line < lines.end; ++line) {
    decode_line<V, T>(op, line, tokens, *static_cast<DecodeScratch*>(scratch));
  }
}

template <class V>
void decode(const Operands& op, Range lines, Range tokens, void* scratch) {
  switch (op.dtype) {
    case DataType::f32:
      return decode_of<V, float>(op, lines, tokens, scratch);
    case DataType::bf16:
      return decode_of<V, Bf16>(op, lines, tokens, scratch);
    case DataType::f16:
      return decode_of<V, F16>(op, lines, tokens, scratch);
    case DataType::f64:
      return;  // refused before
  }
}

}  // namespace
}  // namespace block_sparse::cpu::spmm
