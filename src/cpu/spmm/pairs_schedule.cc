// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstddef>

#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/spmm/schedule.h"

namespace block_sparse::cpu::spmm {
namespace {

/// A is staged in this many words at a time, W packed in as many: 8 MiB, enough work for all
/// threads between two barriers.
constexpr std::int64_t staged_words = std::int64_t{1} << 21;
/// At least so many tokens, for which packing all of W again is worth its while.
constexpr std::int64_t least_staged = 1024;
/// Rows of A that one task stages.
constexpr std::int64_t staged_rows = 16;
constexpr std::int64_t cache_line = 16;  // words

std::int64_t round_up(std::int64_t n, std::int64_t unit) { return (n + unit - 1) / unit * unit; }

/// y for these lines and the tokens that are staged.
Status multiply(const PairsOperands& op, Range lines, std::int64_t tokens,
                const PairsKernels& kernels, const Executor& executor) {
  const std::size_t scratch_bytes = kernels.scratch_bytes(op);
  if (executor.concurrency() == 1) {
    return run_tasks(executor, 1, scratch_bytes, [&](std::int64_t, void* scratch) {
      kernels.multiply(op, lines, {0, tokens}, scratch);
    });
  }
  Operands part = op;
  part.pointers += lines.begin;
  part.lines = lines.end - lines.begin;
  const Plan cut = plan(part, tokens, kernels.costs, executor.concurrency());
  const auto first_token = [&](std::int64_t i) {
    return std::min(round_up(tokens * i / cut.token_parts, kernels.costs.tile), tokens);
  };
  return run_tasks(executor, cut.pieces(), scratch_bytes, [&](std::int64_t piece, void* scratch) {
    const Range of_part = cut.lines_of(piece);
    const std::int64_t i = cut.token_part_of(piece);
    kernels.multiply(op, {lines.begin + of_part.begin, lines.begin + of_part.end},
                     {first_token(i), first_token(i + 1)}, scratch);
  });
}

/// Lines from `first` on that are packed together.
std::int64_t lines_end(const PairsOperands& op, std::int64_t first) {
  std::int64_t end = first + 1;
  while (end < op.lines &&
         (op.pointers[end + 1] - op.pointers[first]) * op.block_words() <= staged_words) {
    ++end;
  }
  return end;
}

/// Some tokens, whose A starts at `a`, `lda` elements apart. Stages A unless `staged` is null.
Status run_tokens(PairsOperands op, const char* a, std::int64_t lda, std::int64_t tokens,
                  float* staged, const PairsKernels& kernels, const Executor& executor) {
  const auto row_bytes = static_cast<std::size_t>(2 * lda);
  for (std::int64_t first = 0; first < op.lines;) {
    const Range lines{first, lines_end(op, first)};
    const std::int64_t words =
        (op.pointers[lines.end] - op.pointers[lines.begin]) * op.block_words();
    op.first_packed = op.pointers[lines.begin];
    // Not nothing, which would look like no memory.
    op.packed = static_cast<float*>(
        thread_scratch(ScratchUse::weights,
                       static_cast<std::size_t>(std::max<std::int64_t>(words, 1)) * sizeof(float)));
    if (op.packed == nullptr) return no_scratch();
    const bool stage = staged != nullptr && first == 0;
    const std::int64_t row_tasks = stage ? (tokens + staged_rows - 1) / staged_rows : 0;
    const auto prepare = [&](std::int64_t begin, std::int64_t end) {
      const std::int64_t rows_end = std::min(std::min(end, row_tasks) * staged_rows, tokens);
      for (std::int64_t t = begin * staged_rows; t < rows_end; ++t) {
        kernels.stage(op, a + static_cast<std::size_t>(t) * row_bytes, t, staged);
      }
      const std::int64_t first_line = std::max(begin, row_tasks);
      if (first_line < end) {
        kernels.pack(op, {first + first_line - row_tasks, first + end - row_tasks});
      }
    };
    const bool small = words * 2 * tokens < serial_work;
    const Executor& threads = small ? serial_executor() : executor;
    threads.parallel_for(row_tasks + lines.end - lines.begin, prepare);
    if (Status status = multiply(op, lines, tokens, kernels, threads); !status.ok()) return status;
    first = lines.end;
  }
  return {};
}

Status run(const Operands& operands, const void* a, std::int64_t lda, std::int64_t tokens,
           const PairsKernels& kernels, const Executor& executor) {
  if (tokens == 0 || operands.outputs == 0) return {};
  PairsOperands op{operands, 0, nullptr, 0};
  op.width = std::max(round_up(op.reduced, op.reduce_extent), op.reduce_extent) / 2;
  // Rows 1 KiB apart share 4 of the 64 places in L1, each of which holds 8 or 12 lines: too few
  // for the rows of a tile.
  const bool crowded = lda % 512 == 0;
  if (!kernels.stages && lda % 2 == 0 && !crowded && op.width * 2 == op.reduced) {
    op.a = static_cast<const float*>(a);
    op.lda = lda / 2;
    return run_tokens(op, static_cast<const char*>(a), lda, tokens, nullptr, kernels, executor);
  }
  // An odd number of cache lines: rows have different places in L1, as many as there are.
  op.lda =
      kernels.stages ? op.width : (round_up(op.width, cache_line) / cache_line | 1) * cache_line;
  const std::int64_t step = std::min(tokens, std::max(least_staged, staged_words / op.lda));
  float* const staged = static_cast<float*>(thread_scratch(
      ScratchUse::staging,
      static_cast<std::size_t>(round_up(step, staged_rows) * op.lda) * sizeof(float)));
  if (staged == nullptr) return no_scratch();
  op.a = staged;
  for (std::int64_t first = 0; first < tokens; first += step) {
    const auto bytes = [&](std::int64_t ld) { return static_cast<std::size_t>(2 * first * ld); };
    PairsOperands part = op;
    part.y = static_cast<char*>(op.y) + bytes(op.ldy);
    if (op.preactivation != nullptr) {
      part.preactivation = static_cast<char*>(op.preactivation) + bytes(op.ldy);
    }
    Status status = run_tokens(part, static_cast<const char*>(a) + bytes(lda), lda,
                               std::min(step, tokens - first), staged, kernels, executor);
    if (!status.ok()) return status;
  }
  return {};
}

}  // namespace

Status forward(const ForwardArgs& args, const PairsKernels& kernels, const Executor& executor) {
  return run(operands_of(args), args.x, args.ldx, args.tokens, kernels, executor);
}

Status input_gradient(const InputGradientArgs& args, const PairsKernels& kernels,
                      const Executor& executor) {
  return run(operands_of(args), args.dy, args.lddy, args.tokens, kernels, executor);
}

}  // namespace block_sparse::cpu::spmm
