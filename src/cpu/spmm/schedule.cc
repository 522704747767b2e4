// SPDX-License-Identifier: Apache-2.0
#include "cpu/spmm/schedule.h"

#include <algorithm>
#include <cstddef>

#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace block_sparse::cpu::spmm {
namespace {

/// 16-bit activations are widened to f32 for this many elements at a time: 8 MiB,
/// enough work for all threads between two barriers.
constexpr std::int64_t staged_elements = std::int64_t{1} << 21;

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
  const Plan cut = plan(operands, tokens, kernels.panel, kernels.costs, executor.concurrency());
  const std::int64_t parts = cut.line_parts();
  return run_tasks(executor, cut.token_parts * parts, kernels.scratch_bytes(operands),
                   [&](std::int64_t task, void* scratch) {
                     const auto at = static_cast<std::size_t>(task % parts);
                     const std::int64_t part = task / parts;
                     kernels.block(
                         operands, {cut.line_bounds[at], cut.line_bounds[at + 1]},
                         {tokens * part / cut.token_parts, tokens * (part + 1) / cut.token_parts},
                         scratch);
                   });
}

/// a (tokens, reduced) of a 16-bit type becomes f32, `width` apart.
void widen(const char* a, std::int64_t lda, std::int64_t tokens, const Operands& operands,
           float* out, std::int64_t width, const Kernels& kernels, const Executor& executor) {
  const std::size_t row_bytes = static_cast<std::size_t>(lda) * size_of(operands.dtype);
  const auto rows = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      kernels.widen(a + static_cast<std::size_t>(t) * row_bytes, operands.dtype, operands.reduced,
                    out + t * width);
    }
  };
  const bool small = tokens * operands.reduced < serial_work / 4;
  (small ? serial_executor() : executor).parallel_for(tokens, rows);
}

/// Widens `a` (tokens, reduced) where needed, then multiplies.
Status run(Operands operands, const void* a, std::int64_t lda, std::int64_t tokens,
           const Kernels& kernels, const Executor& executor) {
  if (tokens == 0 || operands.outputs == 0) return {};
  operands.lda = lda;
  if (operands.dtype == DataType::f32) {
    operands.a = static_cast<const float*>(a);
    return multiply(operands, tokens, kernels, executor);
  }
  const std::int64_t width = std::max<std::int64_t>((operands.reduced + 15) / 16 * 16, 16);
  const std::int64_t step =
      std::min(tokens, std::max<std::int64_t>(kernels.panel, staged_elements / width));
  float* staged = static_cast<float*>(
      thread_scratch(ScratchUse::staging, static_cast<std::size_t>(step * width) * sizeof(float)));
  if (staged == nullptr) return no_scratch();
  operands.a = staged;
  operands.lda = width;
  const std::size_t element = size_of(operands.dtype);
  for (std::int64_t first = 0; first < tokens; first += step) {
    const std::int64_t count = std::min(step, tokens - first);
    const char* rows =
        static_cast<const char*>(a) + static_cast<std::size_t>(first * lda) * element;
    widen(rows, lda, count, operands, staged, width, kernels, executor);
    if (Status status = multiply(operands, count, kernels, executor); !status.ok()) return status;
    const std::size_t written = static_cast<std::size_t>(count * operands.ldy) * element;
    operands.y = static_cast<char*>(operands.y) + written;
    if (operands.preactivation != nullptr) {
      operands.preactivation = static_cast<char*>(operands.preactivation) + written;
    }
  }
  return {};
}

}  // namespace

Plan plan(const Operands& operands, std::int64_t tokens, std::int64_t panel, const Costs& costs,
          int threads) {
  const std::int32_t* const pointers = operands.pointers;
  // Of a token, in uses of an element of each block.
  const double packing_token = costs.packing_a * static_cast<double>(operands.reduced) /
                               static_cast<double>(operands.line_extent * operands.reduce_extent);
  Plan best;
  for (int token_parts = 1; token_parts <= threads; ++token_parts) {
    if (threads % token_parts != 0) continue;
    Plan cut;
    cut.token_parts = std::min<std::int64_t>(token_parts, tokens);
    cut.line_bounds = partition_by_blocks(pointers, operands.lines, threads / token_parts);
    std::int64_t most_blocks = 0;
    for (std::size_t i = 0; i + 1 < cut.line_bounds.size(); ++i) {
      most_blocks = std::max<std::int64_t>(
          most_blocks, pointers[cut.line_bounds[i + 1]] - pointers[cut.line_bounds[i]]);
    }
    const std::int64_t part = (tokens + cut.token_parts - 1) / cut.token_parts;
    const auto panels = static_cast<double>((part + panel - 1) / panel);
    cut.cost = static_cast<double>(most_blocks) *
                   (static_cast<double>(std::max(part, costs.tile)) + costs.packing * panels) +
               packing_token * static_cast<double>(part);
    if (token_parts == 1 || cut.cost < best.cost) best = std::move(cut);
  }
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
