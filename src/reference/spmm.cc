// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <type_traits>
#include <vector>

#include "common/activation.h"
#include "common/numeric.h"
#include "common/scratch.h"
#include "reference/kernels.h"
#include "reference/operands.h"
#include "reference/reference.h"

namespace block_sparse::reference {
namespace {

using cpu::ForwardArgs;
using cpu::InputGradientArgs;

/// Output features that are computed before they are written row by row.
constexpr std::int64_t chunk = 64;

/// Packed activations of a panel: it has to stay near the cores, and a larger
/// one would not spread over them any better.
constexpr std::int64_t panel_bytes = std::int64_t{4} << 20;

template <class A>
std::int64_t n_lines(const Lines<A>& lines) {
  return (lines.output_size + lines.line_extent - 1) / lines.line_extent;
}

/// What happens to a finished sum: bias, pre-activation, activation, rounding.
template <class T>
struct Epilogue {
  const T* bias;
  Activation activation;
  T* preactivation;
  T* y;
  std::int64_t ldy;

  /// sums (count, tile) of output features [first, first + count) and tokens
  /// [token, token + tokens).
  void operator()(const Accumulator<T>* sums, std::int64_t tile, std::int64_t first,
                  std::int64_t count, std::int64_t token, std::int64_t tokens) const {
    for (std::int64_t t = 0; t < tokens; ++t) {
      const std::int64_t row = (token + t) * ldy + first;
      for (std::int64_t i = 0; i < count; ++i) {
        Accumulator<T> v = sums[i * tile + t];
        if (bias != nullptr) v += widen(bias[first + i]);
        if (preactivation != nullptr) preactivation[row + i] = narrow<T>(v);
        y[row + i] = narrow<T>(activate(activation, v));
      }
    }
  }
};

/// The values in the accumulation type: themselves, or a widened copy of the
/// stored blocks in their slots.
template <class T>
class WidenedValues {
  using A = Accumulator<T>;

 public:
  /// `lines` are those of the product, without values.
  WidenedValues(const Lines<A>& lines, std::int64_t slots, const T* values,
                const Executor& executor)
      : values_(values) {
    if constexpr (!std::is_same_v<T, A>) {
      copy_ = Scratch<A>(slots * lines.block_elements);
      if (!copy_) return;
      executor.parallel_for(n_lines(lines), [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t line = begin; line < end; ++line) widen_line(lines, line);
      });
    }
  }

  /// Whether there was memory for the copy.
  bool ok() const { return std::is_same_v<T, A> || copy_; }

  const A* get() const {
    if constexpr (std::is_same_v<T, A>) {
      return values_;
    } else {
      return copy_.get();
    }
  }

 private:
  void widen_line(const Lines<A>& lines, std::int64_t line) const {
    const std::int64_t outputs =
        std::min(lines.line_extent, lines.output_size - line * lines.line_extent);
    for (std::int32_t b = lines.pointers[line]; b < lines.pointers[line + 1]; ++b) {
      const std::int64_t reduced =
          std::min(lines.reduce_extent, lines.reduce_size - lines.indices[b] * lines.reduce_extent);
      const bool by_rows = lines.reduce_stride == 1;
      const std::int64_t height = by_rows ? outputs : reduced;
      const std::int64_t width = by_rows ? reduced : outputs;
      const std::int64_t row_stride = by_rows ? lines.output_stride : lines.reduce_stride;
      const std::int64_t slot = lines.ids[b] * lines.block_elements;
      for (std::int64_t h = 0; h < height; ++h) {
        const T* from = values_ + slot + h * row_stride;
        A* to = copy_.get() + slot + h * row_stride;
        for (std::int64_t w = 0; w < width; ++w) to[w] = widen(from[w]);
      }
    }
  }

  const T* values_;
  Scratch<A> copy_;
};

/// Sums over the blocks of every line for every token; `lines` lacks only the
/// values.
template <class T>
Status multiply(Lines<Accumulator<T>> lines, std::int64_t slots, const T* values,
                std::int64_t tokens, const T* x, std::int64_t ldx, const Epilogue<T>& epilogue,
                const Executor& executor) {
  using A = Accumulator<T>;
  if (tokens == 0 || lines.output_size == 0) return {};
  const Kernels<A>& kernels = choose_kernels<A>(cpu::detected_features());
  const std::int64_t tile = kernels.tile;

  const WidenedValues<T> widened(lines, slots, values, executor);
  lines.values = widened.get();
  const auto token_bytes =
      static_cast<std::int64_t>(sizeof(A)) * std::max<std::int64_t>(lines.reduce_size, 1);
  const std::int64_t panel_tiles =
      std::clamp<std::int64_t>(panel_bytes / (token_bytes * tile), 1, (tokens + tile - 1) / tile);
  const Scratch<A> panel(panel_tiles * tile * lines.reduce_size);
  if (!widened.ok() || !panel) return no_scratch();

  // Few tokens: the lines are divided too. Four tasks a thread, as executors
  // hand out ranges of them.
  const std::int64_t wanted =
      executor.concurrency() == 1 ? 1 : std::int64_t{4} * executor.concurrency();
  const auto parts = static_cast<int>(
      std::clamp<std::int64_t>((wanted + panel_tiles - 1) / panel_tiles, 1, n_lines(lines)));
  const std::vector<std::int64_t> bounds =
      partition_by_blocks(lines.pointers, n_lines(lines), parts);

  for (std::int64_t start = 0; start < tokens; start += panel_tiles * tile) {
    const std::int64_t tiles = std::min(panel_tiles, (tokens - start + tile - 1) / tile);
    const auto tile_of = [&](std::int64_t i) { return panel.get() + i * tile * lines.reduce_size; };
    const auto tokens_of = [&](std::int64_t i) {
      return std::min(tile, tokens - start - i * tile);
    };
    const auto pack = [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        pack_tokens(x + (start + i * tile) * ldx, ldx, tokens_of(i), lines.reduce_size, tile,
                    tile_of(i));
      }
    };
    // Without features there is nothing to pack, and x may be null.
    if (lines.reduce_size > 0) executor.parallel_for(tiles, pack);
    executor.parallel_for(tiles * parts, [&](std::int64_t begin, std::int64_t end) {
      alignas(64) A sums[chunk * max_tile<A>];
      for (std::int64_t task = begin; task < end; ++task) {
        const std::int64_t i = task / parts;
        const std::int64_t part = task % parts;
        const std::int64_t stop = std::min(bounds[part + 1] * lines.line_extent, lines.output_size);
        for (std::int64_t f = bounds[part] * lines.line_extent; f < stop; f += chunk) {
          const std::int64_t count = std::min(chunk, stop - f);
          kernels.rows(lines, tile_of(i), f, count, sums);
          epilogue(sums, tile, f, count, start + i * tile, tokens_of(i));
        }
      }
    });
  }
  return {};
}

template <class T>
Status forward_of(const ForwardArgs& args, const Executor& executor) {
  const PatternView& p = args.pattern;
  const Lines<Accumulator<T>> lines{.pointers = p.crow_indices,
                                    .indices = p.col_indices,
                                    .ids = p.block_ids,
                                    .values = nullptr,
                                    .line_extent = p.block_height,
                                    .reduce_extent = p.block_width,
                                    .output_size = p.rows,
                                    .reduce_size = p.cols,
                                    .block_elements = p.block_height * p.block_width,
                                    .output_stride = p.block_width,
                                    .reduce_stride = 1};
  const Epilogue<T> epilogue{.bias = static_cast<const T*>(args.bias),
                             .activation = args.activation,
                             .preactivation = static_cast<T*>(args.preactivation),
                             .y = static_cast<T*>(args.y),
                             .ldy = args.ldy};
  return multiply<T>(lines, p.slots, static_cast<const T*>(args.values), args.tokens,
                     static_cast<const T*>(args.x), args.ldx, epilogue, executor);
}

template <class T>
Status input_gradient_of(const InputGradientArgs& args, const Executor& executor) {
  const PatternView& p = args.pattern;
  const Lines<Accumulator<T>> lines{.pointers = p.ccol_indices,
                                    .indices = p.row_indices,
                                    .ids = p.t_block_ids,
                                    .values = nullptr,
                                    .line_extent = p.block_width,
                                    .reduce_extent = p.block_height,
                                    .output_size = p.cols,
                                    .reduce_size = p.rows,
                                    .block_elements = p.block_height * p.block_width,
                                    .output_stride = 1,
                                    .reduce_stride = p.block_width};
  const Epilogue<T> epilogue{.bias = nullptr,
                             .activation = Activation::none,
                             .preactivation = nullptr,
                             .y = static_cast<T*>(args.dx),
                             .ldy = args.lddx};
  return multiply<T>(lines, p.slots, static_cast<const T*>(args.values), args.tokens,
                     static_cast<const T*>(args.dy), args.lddy, epilogue, executor);
}

}  // namespace

Status forward(const ForwardArgs& args, const Executor& executor) {
  return with_type(args.dtype, [&]<class T>(T*) { return forward_of<T>(args, executor); });
}

Status input_gradient(const InputGradientArgs& args, const Executor& executor) {
  return with_type(args.dtype, [&]<class T>(T*) { return input_gradient_of<T>(args, executor); });
}

}  // namespace block_sparse::reference
