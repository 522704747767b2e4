// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <atomic>
#include <cmath>
#include <type_traits>

#include "common/numeric.h"
#include "common/scratch.h"
#include "reference/kernels.h"
#include "reference/operands.h"
#include "reference/reference.h"

namespace block_sparse::reference {
namespace {

using cpu::BlockNormsArgs;
using cpu::WeightGradientArgs;

/// Tokens that are packed and reduced at a time. It does not depend on the
/// number of threads, and so neither does the order of the sums. A whole
/// multiple of every tile.
constexpr std::int64_t panel_tokens = 256;

/// Packs features of both operands for the tokens of one panel.
template <class T>
class Panel {
  using A = Accumulator<T>;

 public:
  Panel(std::int64_t dy_features, std::int64_t x_features, std::int64_t tokens, std::int64_t tile)
      : width_(round_up(std::min(tokens, panel_tokens), tile)),
        dy_(dy_features * width_),
        x_(x_features * width_) {}

  explicit operator bool() const { return dy_ && x_; }
  std::int64_t width() const { return width_; }
  A* dy(std::int64_t feature) const { return dy_.get() + feature * width_; }
  A* x(std::int64_t feature) const { return x_.get() + feature * width_; }

 private:
  std::int64_t width_;
  Scratch<A> dy_;
  Scratch<A> x_;
};

template <class T, class Out>
Status weight_gradient_of(const WeightGradientArgs& args, const Executor& executor) {
  using A = Accumulator<T>;
  const PatternView& p = args.pattern;
  const std::int64_t elements = p.block_height * p.block_width;
  Out* const dvalues = static_cast<Out*>(args.dvalues);
  if (!args.accumulate) {
    std::fill(dvalues, dvalues + p.slots * elements, Out{});
  }
  const std::int64_t blocks = p.n_blocks();
  if (args.tokens == 0 || blocks == 0) return {};

  // Sums go straight into dvalues, or are kept by block until they are rounded once.
  constexpr bool direct = std::is_same_v<Out, A>;
  Scratch<A> sums;
  if constexpr (!direct) {
    sums = Scratch<A>(blocks * elements);
    if (!sums) return no_scratch();
    std::fill(sums.get(), sums.get() + blocks * elements, A(0));
  }
  const auto sums_of = [&](std::int64_t i) {
    if constexpr (direct) {
      return dvalues + p.block_ids[i] * elements;
    } else {
      return sums.get() + i * elements;
    }
  };

  const Kernels<A>& kernels = choose_kernels<A>(cpu::detected_features());
  const Panel<T> panel(p.rows, p.cols, args.tokens, kernels.tile);
  if (!panel) return no_scratch();
  const T* dy = static_cast<const T*>(args.dy);
  const T* x = static_cast<const T*>(args.x);

  for (std::int64_t start = 0; start < args.tokens; start += panel.width()) {
    const std::int64_t tokens = std::min(panel.width(), args.tokens - start);
    const std::int64_t length = round_up(tokens, kernels.tile);
    constexpr std::int64_t strip = 64;  // features a packing task
    const std::int64_t dy_strips = (p.rows + strip - 1) / strip;
    const std::int64_t x_strips = (p.cols + strip - 1) / strip;
    executor.parallel_for(dy_strips + x_strips, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t s = begin; s < end; ++s) {
        if (s < dy_strips) {
          const std::int64_t f = s * strip;
          pack_tokens(dy + start * args.lddy + f, args.lddy, tokens, std::min(strip, p.rows - f),
                      length, panel.dy(0) + f * length);
        } else {
          const std::int64_t f = (s - dy_strips) * strip;
          pack_tokens(x + start * args.ldx + f, args.ldx, tokens, std::min(strip, p.cols - f),
                      length, panel.x(0) + f * length);
        }
      }
    });
    executor.parallel_for(blocks, [&](std::int64_t begin, std::int64_t end) {
      for_each_block(p, begin, end, [&](std::int64_t i, std::int64_t row) {
        const Extent extent = extent_of(p, row, p.col_indices[i]);
        kernels.dots(panel.dy(0) + row * p.block_height * length, extent.height,
                     panel.x(0) + p.col_indices[i] * p.block_width * length, extent.width, length,
                     sums_of(i), p.block_width);
      });
    });
  }

  if constexpr (!direct) {
    executor.parallel_for(blocks, [&](std::int64_t begin, std::int64_t end) {
      for_each_block(p, begin, end, [&](std::int64_t i, std::int64_t row) {
        const Extent extent = extent_of(p, row, p.col_indices[i]);
        for (std::int64_t h = 0; h < extent.height; ++h) {
          const A* from = sums_of(i) + h * p.block_width;
          Out* to = dvalues + p.block_ids[i] * elements + h * p.block_width;
          for (std::int64_t w = 0; w < extent.width; ++w)
            to[w] = narrow<Out>(widen(to[w]) + from[w]);
        }
      });
    });
  }
  return {};
}

/// Dense gradients are made, squared and forgotten in pieces of at most this
/// many rows and columns: 64 KiB in float32, and packing their operands costs
/// little next to multiplying them.
constexpr std::int64_t piece = 128;

/// Squares of the dense gradient within some blocks, added up by block.
template <class T>
class SquaredGradient {
  using A = Accumulator<T>;

 public:
  explicit SquaredGradient(const BlockNormsArgs& args)
      : args_(args), panel_(piece, piece, args.tokens, kernels_.tile), dense_(piece * piece) {}

  explicit operator bool() const { return panel_ && dense_; }

  /// Rows [r0, r1) and columns [c0, c1), at most `piece` of each: squares of
  /// block (first_row + i, first_col + j) are added to sums[i * ld + j].
  void add(std::int64_t r0, std::int64_t r1, std::int64_t c0, std::int64_t c1,
           std::int64_t first_row, std::int64_t first_col, double* sums, std::int64_t ld) const {
    std::fill(dense_.get(), dense_.get() + (r1 - r0) * piece, A(0));
    const T* dy = static_cast<const T*>(args_.dy);
    const T* x = static_cast<const T*>(args_.x);
    for (std::int64_t start = 0; start < args_.tokens; start += panel_.width()) {
      const std::int64_t tokens = std::min(panel_.width(), args_.tokens - start);
      const std::int64_t length = round_up(tokens, kernels_.tile);
      pack_tokens(dy + start * args_.lddy + r0, args_.lddy, tokens, r1 - r0, length, panel_.dy(0));
      pack_tokens(x + start * args_.ldx + c0, args_.ldx, tokens, c1 - c0, length, panel_.x(0));
      kernels_.dots(panel_.dy(0), r1 - r0, panel_.x(0), c1 - c0, length, dense_.get(), piece);
    }
    const PatternView& p = args_.pattern;
    for (std::int64_t r = r0; r < r1; ++r) {
      double* row_sums = sums + (r / p.block_height - first_row) * ld;
      for (std::int64_t c = c0; c < c1; ++c) {
        const double g = dense_.get()[(r - r0) * piece + (c - c0)];
        row_sums[c / p.block_width - first_col] += g * g;
      }
    }
  }

 private:
  const BlockNormsArgs& args_;
  const Kernels<A>& kernels_ = choose_kernels<A>(cpu::detected_features());
  Panel<T> panel_;
  Scratch<A> dense_;
};

template <class T>
Status block_norms_of(const BlockNormsArgs& args, const Executor& executor) {
  using A = Accumulator<T>;
  const PatternView& p = args.pattern;
  const std::int64_t block_rows = p.n_block_rows();
  const std::int64_t block_cols = p.n_block_cols();
  A* const norms = static_cast<A*>(args.norms);
  // A task is a rectangle of whole blocks that fits one piece, or one block
  // that takes several pieces.
  const std::int64_t task_rows = std::max<std::int64_t>(1, piece / p.block_height);
  const std::int64_t task_cols = std::max<std::int64_t>(1, piece / p.block_width);
  const std::int64_t down = (block_rows + task_rows - 1) / task_rows;
  const std::int64_t across = (block_cols + task_cols - 1) / task_cols;

  std::atomic<bool> failed{false};
  executor.parallel_for(down * across, [&](std::int64_t begin, std::int64_t end) {
    const SquaredGradient<T> squares(args);
    const Scratch<double> sums(task_rows * task_cols);
    if (!squares || !sums) {
      failed = true;
      return;
    }
    for (std::int64_t task = begin; task < end; ++task) {
      const std::int64_t row = task / across * task_rows;
      const std::int64_t col = task % across * task_cols;
      const std::int64_t rows = std::min(task_rows, block_rows - row);
      const std::int64_t cols = std::min(task_cols, block_cols - col);
      std::fill(sums.get(), sums.get() + rows * cols, 0.0);
      const std::int64_t r_end = std::min((row + rows) * p.block_height, p.rows);
      const std::int64_t c_end = std::min((col + cols) * p.block_width, p.cols);
      for (std::int64_t r = row * p.block_height; r < r_end; r += piece) {
        for (std::int64_t c = col * p.block_width; c < c_end; c += piece) {
          squares.add(r, std::min(r + piece, r_end), c, std::min(c + piece, c_end), row, col,
                      sums.get(), cols);
        }
      }
      for (std::int64_t i = 0; i < rows; ++i) {
        for (std::int64_t j = 0; j < cols; ++j) {
          norms[(row + i) * block_cols + col + j] =
              static_cast<A>(std::sqrt(sums.get()[i * cols + j]));
        }
      }
    }
  });
  return failed ? no_scratch() : Status{};
}

}  // namespace

Status weight_gradient(const WeightGradientArgs& args, const Executor& executor) {
  return with_type(args.dtype, [&]<class T>(T*) {
    return args.out_dtype == args.dtype ? weight_gradient_of<T, T>(args, executor)
                                        : weight_gradient_of<T, Accumulator<T>>(args, executor);
  });
}

Status block_norms(const BlockNormsArgs& args, const Executor& executor) {
  return with_type(args.dtype, [&]<class T>(T*) { return block_norms_of<T>(args, executor); });
}

}  // namespace block_sparse::reference
