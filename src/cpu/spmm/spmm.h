// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "block_sparse/types.h"
#include "cpu/parallel.h"
#include "cpu/range.h"

/// Forward and input gradient are one product: y (tokens, outputs) = a W', where
/// W' is cut into lines of outputs (block rows of W in forward, block columns
/// in the input gradient) and each line is a list of blocks over the reduced
/// features.
namespace block_sparse::cpu::spmm {

struct Operands {
  // Blocks of line i: pointers[i] to pointers[i + 1].
  const std::int32_t* pointers;
  const std::int32_t* indices;  // which block of reduced features
  const std::int32_t* ids;      // slot in values
  std::int64_t lines;
  std::int64_t line_extent;    // outputs of a line, a multiple of 16
  std::int64_t reduce_extent;  // reduced features of a block
  std::int64_t outputs;        // the last line may be shorter
  std::int64_t reduced;        // the last block may be narrower
  /// Blocks are stored (outputs, reduced) in forward and (reduced, outputs) in
  /// the input gradient.
  bool outputs_first;
  DataType dtype;  // of values, bias, preactivation, y
  const void* values;

  /// (tokens, reduced), `lda` elements apart: of `dtype`, or floats if Kernels::widen makes them;
  /// words as PairsKernels stage them.
  const void* a;
  std::int64_t lda;

  const void* bias;  // (outputs), or null
  Activation activation;
  void* preactivation;  // like y, or null
  void* y;
  std::int64_t ldy;
};

/// The largest number of tokens for which not packing W is faster. Measured with
/// AVX2 on 768 -> 3072, blocks of 16, 32 and 64, density .5 and .1, time of the
/// tiles over that of dot products: 1 token 2.2-2.4, 2 or 3 tokens 1.5-2.1, 4 or 5
/// tokens .9-1.2, 6 tokens 1-1.4, 7 or 8 tokens .8-1.1, 16 tokens .6-.8.
constexpr std::int64_t decode_tokens = 6;

/// The largest number of tokens for which tokens along the vectors are faster than tiles where both
/// can run: W is not packed for them.
constexpr std::int64_t most_tokens = 32;

/// What the cut of a product for several threads goes by.
struct Costs {
  double packing;     // of an element of W, in tokens for which it is used
  double packing_a;   // of an element of A, in outputs for which it is used
  std::int64_t tile;  // tokens of a tile: fewer take as long
  double piece;       // of a further one for a thread, in multiply-adds
};
constexpr Costs register_costs = {4, 3, 6, further_task};
constexpr Costs token_costs = {0, 8, 16, further_task};  // A is transposed, W stays where it is

/// What one instruction set offers.
struct Kernels {
  Costs costs;
  /// Bytes of scratch, aligned to 64, that `block` works in.
  std::size_t (*scratch_bytes)(const Operands& operands);
  /// y for these lines and tokens.
  void (*block)(const Operands& operands, Range lines, Range tokens, void* scratch);
  /// n elements of bf16 or f16 as f32; out holds n rounded up to 16. Null if `block` takes A as it
  /// is.
  void (*widen)(const void* in, DataType dtype, std::int64_t n, float* out);
};

extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
extern const Kernels avx2_decode_kernels;  // forward of up to decode_tokens
extern const Kernels avx512_decode_kernels;
extern const Kernels avx2_tokens_kernels;  // f32
extern const Kernels avx512_tokens_kernels;

/// Words: two neighbours of bf16 in the reduced features. A and W are brought into the order of the
/// kernels by all threads together, since that costs as much as using them many times.
struct PairsOperands : Operands {
  std::int64_t width;         // words of a token in A: whole blocks and what is left to zero
  float* packed;              // the lines of W that are packed
  std::int64_t first_packed;  // the first block of them

  std::int64_t block_words() const { return line_extent * reduce_extent / 2; }
};

struct PairsKernels {
  Costs costs;
  /// Whether A must be staged. Else it is read where it lies, if it can be.
  bool stages;
  std::size_t (*scratch_bytes)(const PairsOperands& operands);
  /// Row `token` of A in the order of the kernels.
  void (*stage)(const PairsOperands& operands, const void* row, std::int64_t token, float* out);
  void (*pack)(const PairsOperands& operands, Range lines);
  /// y for these lines and tokens, which start at a tile.
  void (*multiply)(const PairsOperands& operands, Range lines, Range tokens, void* scratch);
};

extern const PairsKernels avx512_bf16_kernels;
extern const PairsKernels amx_kernels;

}  // namespace block_sparse::cpu::spmm
