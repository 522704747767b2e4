// SPDX-License-Identifier: Apache-2.0
#include "cpu/dispatch.h"

#include <algorithm>
#include <cstdio>
#include <string_view>
#include <type_traits>

#include "cpu/sddmm/schedule.h"
#include "cpu/spmm/schedule.h"
#include "reference/reference.h"

namespace block_sparse::cpu {
namespace {

template <class Args>
const char* refuse_nothing(const Args&) {
  return nullptr;
}

/// Kernels that cut blocks into tiles of 16.
template <class Args>
const char* refuse_tiles(const Args& args) {
  if (args.dtype == DataType::f64) return "it computes in f32";
  if (args.pattern.block_height % 16 != 0) return "the block height is no multiple of 16";
  if (args.pattern.block_width % 16 != 0) return "the block width is no multiple of 16";
  return nullptr;
}

/// Kernels that take the products of bf16 two by two.
template <class Args>
const char* refuse_pairs(const Args& args) {
  if (args.dtype != DataType::bf16) return "it multiplies bf16";
  return refuse_tiles(args);
}

const char* refuse_all_but_f32(DataType dtype) {
  return dtype == DataType::f32 ? nullptr : "it multiplies f32";
}

/// Kernels with the tokens along vectors of `lanes`. Where tiles can run, they are faster if W is
/// used by many tokens, or if the tokens would leave a quarter of the vectors empty.
template <int lanes>
const char* refuse_tokens(const ForwardArgs& args) {
  if (const char* reason = refuse_all_but_f32(args.dtype)) return reason;
  if (refuse_tiles(args) != nullptr) return nullptr;
  if (args.tokens > spmm::most_tokens) return "there are too many tokens";
  const std::int64_t filled = (args.tokens + lanes - 1) / lanes * lanes;
  return 4 * args.tokens < 3 * filled ? "there are too few tokens for its vectors" : nullptr;
}

/// In the gradients tiles need no packed W, so they are at least as fast for any number of tokens.
template <class Args>
const char* refuse_beside_tiles(const Args& args) {
  if (const char* reason = refuse_all_but_f32(args.dtype)) return reason;
  return refuse_tiles(args) == nullptr ? "tiles can do it" : nullptr;
}

const char* refuse_decode(const ForwardArgs& args) {
  if (args.tokens > spmm::decode_tokens) return "there are too many tokens";
  return refuse_tiles(args);
}

template <class Args, class Line>
void append_if(std::vector<Kernel<Args>>& list, const Kernel<Line>& kernel) {
  if constexpr (std::is_same_v<Args, Line>) list.push_back(kernel);
}

bool any_kernel_named(std::string_view name) {
#define KERNEL(args, kernel_name, needs, refuse, run) \
  if (name == #kernel_name) return true;
#include "cpu/kernels.inc"
#undef KERNEL
  return false;
}

const char* product_name(const ForwardArgs&) { return "forward"; }
const char* product_name(const InputGradientArgs&) { return "input_gradient"; }
const char* product_name(const WeightGradientArgs&) { return "weight_gradient"; }
const char* product_name(const BlockNormsArgs&) { return "block_norms"; }

template <class Args>
void trace(const Args& args, const char* kernel, const char* what, const char* reason) {
  const PatternView& p = args.pattern;
  std::fprintf(stderr,
               "block_sparse: %s %s (%lld, %lld) in blocks of (%lld, %lld), %lld tokens: "
               "%s %s%s%s\n",
               product_name(args), name_of(args.dtype), static_cast<long long>(p.rows),
               static_cast<long long>(p.cols), static_cast<long long>(p.block_height),
               static_cast<long long>(p.block_width), static_cast<long long>(args.tokens), kernel,
               what, reason[0] == '\0' ? "" : ": ", reason);
}

}  // namespace

template <class Args>
const std::vector<Kernel<Args>>& kernels() {
  static const std::vector<Kernel<Args>> list = [] {
    std::vector<Kernel<Args>> out;
#define KERNEL(args, name, needs, refuse, run) \
  append_if(out, Kernel<args>{#name, needs, refuse, run});
#include "cpu/kernels.inc"
#undef KERNEL
    return out;
  }();
  return list;
}

template <class Args>
const char* refusal(const Kernel<Args>& kernel, const Args& args, Features features) {
  if ((kernel.needs & features) != kernel.needs) return "this processor lacks its instructions";
  return kernel.refuse(args);
}

template <class Args>
const Kernel<Args>& choose(const Args& args, Features features) {
  for (const Kernel<Args>& kernel : kernels<Args>()) {
    if (refusal(kernel, args, features) == nullptr) return kernel;
  }
  return kernels<Args>().back();
}

Settings parse_settings(const char* verbose, const char* force) {
  Settings settings;
  settings.trace = verbose != nullptr && std::string_view(verbose) == "dispatch";
  std::string_view rest = force == nullptr ? "" : force;
  while (!rest.empty()) {
    const std::size_t comma = std::min(rest.find(','), rest.size());
    const std::string name(rest.substr(0, comma));
    rest.remove_prefix(std::min(comma + 1, rest.size()));
    if (!any_kernel_named(name)) {
      settings.error =
          "BLOCK_SPARSE_FORCE names '" + name +
          "', expected the name of a kernel as BLOCK_SPARSE_VERBOSE=dispatch prints it";
      break;
    }
    settings.forced.push_back(name);
  }
  return settings;
}

template <class Args>
Status dispatch(const Args& args, const Executor& executor, Features features,
                const Settings& settings) {
  if (!settings.error.empty()) return Status::invalid_argument(settings.error);
  for (const Kernel<Args>& kernel : kernels<Args>()) {
    const bool forced = std::find(settings.forced.begin(), settings.forced.end(), kernel.name) !=
                        settings.forced.end();
    if (!forced) continue;
    if (const char* reason = refusal(kernel, args, features)) {
      return Status::unsupported(std::string("BLOCK_SPARSE_FORCE asks for ") + kernel.name +
                                 ", which cannot run this product: " + reason);
    }
    if (settings.trace) trace(args, kernel.name, "forced", "");
    return kernel.run(args, executor);
  }
  if (settings.trace) {
    for (const Kernel<Args>& kernel : kernels<Args>()) {
      const char* reason = refusal(kernel, args, features);
      if (reason == nullptr) break;
      trace(args, kernel.name, "refused", reason);
    }
  }
  const Kernel<Args>& kernel = choose(args, features);
  if (settings.trace) trace(args, kernel.name, "chosen", "");
  return kernel.run(args, executor);
}

#define INSTANTIATE(Args)                                                   \
  template const std::vector<Kernel<Args>>& kernels<Args>();                \
  template const char* refusal(const Kernel<Args>&, const Args&, Features); \
  template const Kernel<Args>& choose(const Args&, Features);               \
  template Status dispatch(const Args&, const Executor&, Features, const Settings&);
INSTANTIATE(ForwardArgs)
INSTANTIATE(InputGradientArgs)
INSTANTIATE(WeightGradientArgs)
INSTANTIATE(BlockNormsArgs)
#undef INSTANTIATE

}  // namespace block_sparse::cpu
