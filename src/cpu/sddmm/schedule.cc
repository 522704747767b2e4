// SPDX-License-Identifier: Apache-2.0
#include "cpu/sddmm/schedule.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace block_sparse::cpu::sddmm {
namespace {

/// x is packed for this many elements at a time: 8 MiB, enough work for all
/// threads between two barriers.
constexpr std::int64_t packed_elements = std::int64_t{1} << 21;
/// Accumulators, where the result cannot serve as such: 16 MiB. Large, since x is
/// packed again for each such group of blocks.
constexpr std::int64_t accumulated_elements = std::int64_t{1} << 22;

template <class Args>
Operands operands_of(const Args& args) {
  Operands op{};
  op.dtype = args.dtype;
  op.rows = args.pattern.rows;
  op.cols = args.pattern.cols;
  op.block_height = args.pattern.block_height;
  op.block_width = args.pattern.block_width;
  op.lddy = args.lddy;
  op.ldx = args.ldx;
  return op;
}

/// The sums of `blocks` over all tokens, in passes over x. `finish(block)` is
/// called once for each, when its sums are complete.
template <class Args, class Finish>
Status accumulate(Operands op, const Args& args, Range blocks, bool start_from_zero,
                  const Kernels& kernels, const Executor& all_threads, const Finish& finish) {
  const std::int64_t n = blocks.end - blocks.begin;
  const std::int64_t tokens = args.tokens;
  const std::int64_t width = op.packed_width();
  const std::int64_t pass = std::min(tokens, std::max<std::int64_t>(64, packed_elements / width));
  const auto depth_of = [&](std::int64_t count) {
    return (count + kernels.token_unit - 1) / kernels.token_unit * kernels.token_unit /
           kernels.word_tokens;
  };
  op.packed_x = static_cast<float*>(thread_scratch(
      ScratchUse::staging, static_cast<std::size_t>(depth_of(pass) * width) * sizeof(float)));
  if (op.packed_x == nullptr) return no_scratch();

  const std::int64_t work = n * op.block_height * op.block_width * tokens;
  const Executor& executor = work < serial_work ? serial_executor() : all_threads;
  const std::int64_t threads = executor.concurrency();
  const auto worthwhile = static_cast<std::int64_t>(static_cast<double>(work) / further_task);
  const std::int64_t tasks =
      threads == 1 ? 1 : std::min(n, std::clamp(worthwhile, threads, tasks_of_a_thread * threads));
  const std::size_t element = size_of(op.dtype);
  for (std::int64_t first = 0; first < tokens; first += pass) {
    op.tokens = std::min(pass, tokens - first);
    op.depth = depth_of(op.tokens);
    op.dy = static_cast<const char*>(args.dy) + static_cast<std::size_t>(first * op.lddy) * element;
    op.x = static_cast<const char*>(args.x) + static_cast<std::size_t>(first * op.ldx) * element;
    op.start_from_zero = start_from_zero && first == 0;
    const bool last = first + pass >= tokens;
    executor.parallel_for(op.block_cols(), [&](std::int64_t begin, std::int64_t end) {
      kernels.pack(op, {begin, end});
    });
    Status status =
        run_tasks(executor, tasks, kernels.scratch_bytes, [&](std::int64_t task, void* scratch) {
          const Range part{blocks.begin + n * task / tasks, blocks.begin + n * (task + 1) / tasks};
          kernels.multiply(op, part, scratch);
          if (!last) return;
          for (std::int64_t i = part.begin; i < part.end; ++i) finish(i);
        });
    if (!status.ok()) return status;
  }
  return {};
}

/// The same where the sums need a place of their own, group by group.
template <class Args, class Finish>
Status accumulate_in_scratch(Operands op, const Args& args, std::int64_t n_blocks,
                             const Kernels& kernels, const Executor& executor,
                             const Finish& finish) {
  const std::int64_t size = op.block_height * op.block_width;
  const std::int64_t group =
      std::min(n_blocks, std::max<std::int64_t>(1, accumulated_elements / size));
  op.c = static_cast<float*>(thread_scratch(
      ScratchUse::accumulators, static_cast<std::size_t>(group * size) * sizeof(float)));
  if (op.c == nullptr) return no_scratch();
  op.ids = nullptr;
  for (std::int64_t first = 0; first < n_blocks; first += group) {
    op.first_block = first;
    Status status = accumulate(op, args, {first, std::min(first + group, n_blocks)}, true, kernels,
                               executor, [&](std::int64_t i) { finish(i, op.accumulators(i)); });
    if (!status.ok()) return status;
  }
  return {};
}

Extent valid_part(const Operands& op, std::int64_t row, std::int64_t col) {
  return {std::min(op.block_height, op.rows - row * op.block_height),
          std::min(op.block_width, op.cols - col * op.block_width)};
}

/// Zeros the padding of one block.
void clear_padding(char* block, const Operands& op, Extent valid, std::size_t element) {
  const auto row_bytes = static_cast<std::size_t>(op.block_width) * element;
  const auto kept = static_cast<std::size_t>(valid.cols) * element;
  for (std::int64_t r = 0; r < op.block_height; ++r) {
    const std::size_t from = r < valid.rows ? kept : 0;
    std::memset(block + static_cast<std::size_t>(r) * row_bytes + from, 0, row_bytes - from);
  }
}

/// Zeros the slots that no block uses.
void clear_spare_slots(const PatternView& pattern, char* dvalues, std::size_t block_bytes) {
  if (pattern.n_blocks() == pattern.slots) return;
  std::vector<bool> used(static_cast<std::size_t>(pattern.slots));
  for (std::int64_t i = 0; i < pattern.n_blocks(); ++i) {
    used[static_cast<std::size_t>(pattern.block_ids[i])] = true;
  }
  for (std::size_t slot = 0; slot < used.size(); ++slot) {
    if (!used[slot]) std::memset(dvalues + slot * block_bytes, 0, block_bytes);
  }
}

}  // namespace

Status weight_gradient(const WeightGradientArgs& args, const Kernels& kernels,
                       const Executor& executor) {
  const PatternView& p = args.pattern;
  Operands op = operands_of(args);
  op.crow_indices = p.crow_indices;
  op.col_indices = p.col_indices;
  op.ids = p.block_ids;

  const std::size_t element = size_of(args.out_dtype);
  const std::size_t block_bytes =
      static_cast<std::size_t>(p.block_height * p.block_width) * element;
  char* const dvalues = static_cast<char*>(args.dvalues);
  if (args.tokens == 0 || p.rows == 0 || p.cols == 0) {
    const std::size_t bytes = static_cast<std::size_t>(p.slots) * block_bytes;
    if (!args.accumulate && bytes > 0) std::memset(dvalues, 0, bytes);
    return {};
  }
  if (!args.accumulate) clear_spare_slots(p, dvalues, block_bytes);

  const bool ragged = p.rows % p.block_height != 0 || p.cols % p.block_width != 0;
  const Extent block{p.block_height, p.block_width};
  // Looked up by block, since a task starts in the middle of a row.
  const auto extent_of = [&](std::int64_t i) {
    const std::int32_t* next =
        std::upper_bound(p.crow_indices, p.crow_indices + p.n_block_rows() + 1, i);
    return valid_part(op, next - p.crow_indices - 1, p.col_indices[i]);
  };
  const auto slot_of = [&](std::int64_t i) {
    return dvalues + static_cast<std::size_t>(p.block_ids[i]) * block_bytes;
  };

  if (p.n_blocks() == 0) return {};
  if (args.out_dtype == DataType::f32) {
    op.c = static_cast<float*>(args.dvalues);
    return accumulate(op, args, {0, p.n_blocks()}, !args.accumulate, kernels, executor,
                      [&](std::int64_t i) {
                        if (args.accumulate || !ragged) return;
                        clear_padding(slot_of(i), op, extent_of(i), element);
                      });
  }
  return accumulate_in_scratch(
      op, args, p.n_blocks(), kernels, executor, [&](std::int64_t i, const float* sums) {
        const Extent valid = ragged ? extent_of(i) : block;
        kernels.narrow(sums, block, valid, {args.out_dtype, args.accumulate, slot_of(i)});
        if (!args.accumulate && ragged) clear_padding(slot_of(i), op, valid, element);
      });
}

Status block_norms(const BlockNormsArgs& args, const Kernels& kernels, const Executor& executor) {
  const Operands op = operands_of(args);
  float* const norms = static_cast<float*>(args.norms);
  const std::int64_t n = op.block_rows() * op.block_cols();
  if (args.tokens == 0 || n == 0) {
    std::fill(norms, norms + n, 0.0f);
    return {};
  }
  const Extent block{op.block_height, op.block_width};
  return accumulate_in_scratch(
      op, args, n, kernels, executor, [&](std::int64_t i, const float* sums) {
        const Extent valid = valid_part(op, i / op.block_cols(), i % op.block_cols());
        norms[i] = static_cast<float>(std::sqrt(kernels.squares(sums, block, valid)));
      });
}

}  // namespace block_sparse::cpu::sddmm
