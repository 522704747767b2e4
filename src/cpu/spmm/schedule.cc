// SPDX-License-Identifier: Apache-2.0
#include "cpu/spmm/schedule.h"

#include <algorithm>
#include <cstddef>

#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace block_sparse::cpu::spmm {
namespace {

/// Fetching an element of W takes as long as this many multiply-adds: 4 bytes at 25 GB/s, what one
/// core of a large Xeon gets from L3, against 50 multiply-adds a nanosecond.
constexpr std::int64_t fetching = 8;

/// y for the tokens that `operands.a` holds.
Status multiply(const Operands& operands, std::int64_t tokens, const Kernels& kernels,
                const Executor& executor) {
  const std::int64_t work = operands.pointers[operands.lines] * operands.line_extent *
                            operands.reduce_extent * std::max(tokens, fetching);
  if (executor.concurrency() == 1 || work < serial_work) {
    return run_tasks(serial_executor(), 1, kernels.scratch_bytes(operands),
                     [&](std::int64_t, void* scratch) {
                       kernels.block(operands, {0, operands.lines}, {0, tokens}, scratch);
                     });
  }
  const Plan cut = plan(operands, tokens, kernels.costs, executor.concurrency());
  return run_tasks(executor, cut.pieces(), kernels.scratch_bytes(operands),
                   [&](std::int64_t piece, void* scratch) {
                     const std::int64_t part = cut.token_part_of(piece);
                     kernels.block(
                         operands, cut.lines_of(piece),
                         {tokens * part / cut.token_parts, tokens * (part + 1) / cut.token_parts},
                         scratch);
                   });
}

/// Widens `a` (tokens, reduced) where that is needed, then multiplies.
Status run(Operands operands, const void* a, std::int64_t lda, std::int64_t tokens,
           const Kernels& kernels, const Executor& executor) {
  if (tokens == 0 || operands.outputs == 0) return {};
  operands.a = a;
  operands.lda = lda;
  if (operands.dtype == DataType::f32 || kernels.widen == nullptr) {
    return multiply(operands, tokens, kernels, executor);
  }
  const std::int64_t width = std::max<std::int64_t>((operands.reduced + 15) / 16 * 16, 16);
  auto* const widened = static_cast<float*>(thread_scratch(
      ScratchUse::staging, static_cast<std::size_t>(tokens * width) * sizeof(float)));
  if (widened == nullptr) return no_scratch();
  const std::size_t row_bytes = static_cast<std::size_t>(lda) * size_of(operands.dtype);
  for (std::int64_t t = 0; t < tokens; ++t) {
    kernels.widen(static_cast<const char*>(a) + static_cast<std::size_t>(t) * row_bytes,
                  operands.dtype, operands.reduced, widened + t * width);
  }
  operands.a = widened;
  operands.lda = width;
  return multiply(operands, tokens, kernels, executor);
}

}  // namespace

Plan plan(const Operands& operands, std::int64_t tokens, const Costs& costs, int threads) {
  const std::int32_t* const pointers = operands.pointers;
  const auto block = static_cast<double>(operands.line_extent * operands.reduce_extent);
  // Of a token, in uses of an element of each block.
  const double packing_token = costs.packing_a * static_cast<double>(operands.reduced) / block;
  const auto blocks_of = [&](Range lines) { return pointers[lines.end] - pointers[lines.begin]; };
  const auto all_blocks = static_cast<double>(blocks_of({0, operands.lines}));
  Plan best;
  const std::int64_t most_parts = std::min<std::int64_t>(tokens, tasks_of_a_thread * threads);
  for (std::int64_t token_parts = 1; token_parts <= most_parts; token_parts *= 2) {
    for (int pieces = 1; pieces <= tasks_of_a_thread; pieces *= 2) {
      Plan cut;
      cut.token_parts = token_parts;
      const std::vector<std::int64_t> bounds =
          partition_by_blocks(pointers, operands.lines,
                              static_cast<int>((pieces * threads + token_parts - 1) / token_parts));
      std::int32_t most_blocks = 0;
      for (std::size_t i = 0; i + 1 < bounds.size(); ++i) {
        const Range lines{bounds[i], bounds[i + 1]};
        if (lines.begin == lines.end) continue;
        cut.line_parts.push_back(lines);
        most_blocks = std::max(most_blocks, blocks_of(lines));
      }
      const std::int64_t part = (tokens + token_parts - 1) / token_parts;
      const double of_a_block = static_cast<double>(std::max(part, costs.tile)) + costs.packing;
      const double of_a_piece = packing_token * static_cast<double>(part) + costs.piece / block;
      const double longest = most_blocks * of_a_block + of_a_piece;
      const double all = static_cast<double>(token_parts) * all_blocks * of_a_block +
                         static_cast<double>(cut.pieces()) * of_a_piece;
      // Threads are done at different times, a fraction of a piece apart.
      cut.cost = std::max(all / threads, longest) + longest / 4;
      if (best.line_parts.empty() || cut.cost < best.cost) best = std::move(cut);
    }
  }
  std::stable_sort(best.line_parts.begin(), best.line_parts.end(),
                   [&](Range a, Range b) { return blocks_of(a) > blocks_of(b); });
  return best;
}

Operands operands_of(const ForwardArgs& args) {
  const PatternView& p = args.pattern;
  Operands operands{};
  operands.pointers = p.crow_indices;
  operands.indices = p.col_indices;
  operands.ids = p.block_ids;
  operands.lines = p.n_block_rows();
  operands.line_extent = p.block_height;
  operands.reduce_extent = p.block_width;
  operands.outputs = p.rows;
  operands.reduced = p.cols;
  operands.outputs_first = true;
  operands.dtype = args.dtype;
  operands.values = args.values;
  operands.bias = args.bias;
  operands.activation = args.activation;
  operands.preactivation = args.preactivation;
  operands.y = args.y;
  operands.ldy = args.ldy;
  return operands;
}

Operands operands_of(const InputGradientArgs& args) {
  const PatternView& p = args.pattern;
  Operands operands{};
  operands.pointers = p.ccol_indices;
  operands.indices = p.row_indices;
  operands.ids = p.t_block_ids;
  operands.lines = p.n_block_cols();
  operands.line_extent = p.block_width;
  operands.reduce_extent = p.block_height;
  operands.outputs = p.cols;
  operands.reduced = p.rows;
  operands.outputs_first = false;
  operands.dtype = args.dtype;
  operands.values = args.values;
  operands.activation = Activation::none;
  operands.y = args.dx;
  operands.ldy = args.lddx;
  return operands;
}

Status forward(const ForwardArgs& args, const Kernels& kernels, const Executor& executor) {
  return run(operands_of(args), args.x, args.ldx, args.tokens, kernels, executor);
}

Status input_gradient(const InputGradientArgs& args, const Kernels& kernels,
                      const Executor& executor) {
  return run(operands_of(args), args.dy, args.lddy, args.tokens, kernels, executor);
}

}  // namespace block_sparse::cpu::spmm
