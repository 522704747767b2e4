// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "cuda/common/device.h"
#include "cuda/sm90/wide/kernel.cuh"
#include "cuda/sm90/wide/wide.h"

namespace block_sparse::cuda::sm90::wide {
namespace {

using generic::SpmmProblem;

/// How the work is cut: tokens of a CTA's tile, and into how many tiles of two CTAs.
struct Cut {
  int tokens;
  std::int64_t token_tiles;
  std::int64_t clusters;
};

/// The tiles with which the slowest cluster has least to do. What a tile takes besides its
/// tokens (W, the pause between two) was measured to be as much as 160 more of them.
Cut choose(const SpmmProblem& p, const Device& device) {
  Cut best{};
  std::int64_t least = 0;
  for (const int tokens : {256, 192, 128}) {
    const std::int64_t token_tiles = (p.tokens + tokens * kCluster - 1) / (tokens * kCluster);
    const std::int64_t items = Schedule::pairs_of(p.out) * token_tiles;
    const auto clusters = std::min<std::int64_t>(items, device.multiprocessors / kCluster);
    const std::int64_t cost = (items + clusters - 1) / clusters * (tokens + 160);
    if (best.tokens != 0 && cost >= least) continue;
    best = {tokens, token_tiles, clusters};
    least = cost;
  }
  return best;
}

template <class C>
Status launch(const SpmmProblem& p, const Cut& cut, Stream stream) {
  const bool is_bf16 = p.dtype == DataType::bf16;
  const auto map_of_output = [&](void* data, CUtensorMap* map) {
    return make_tensor_map({data, p.tokens, p.out, p.ldy, kStoreTokens, C::kSide, is_bf16}, map);
  };
  // The slots as one tall matrix; a bound on their number is all that is needed.
  const std::int64_t slot_cols = C::kSide < 64 ? 64 : C::kMContiguous ? p.height : p.width;
  const std::int64_t slot_rows = p.slots * p.height * p.width / slot_cols;
  CUtensorMap x_map, w_map, y_map, preactivation_map;
  Status s = make_tensor_map({p.x, p.tokens, p.in, p.ldx, C::kTokens, C::kStageK, is_bf16}, &x_map);
  if (s.ok()) {
    s = make_tensor_map({p.values, slot_rows, slot_cols, slot_cols, C::kWRows, 64, is_bf16},
                        &w_map);
  }
  if (s.ok()) s = map_of_output(p.y, &y_map);
  if (s.ok()) {
    s = map_of_output(p.preactivation == nullptr ? p.y : p.preactivation, &preactivation_map);
  }
  if (!s.ok()) return s;

  constexpr int kBytes = sizeof(Shared<C>) + 1024;
  static_assert(kBytes <= 227 * 1024);
  const auto function = kernel<C>;
  if (s = allow_shared_memory(function, kBytes); !s.ok()) return s;

  Lines lines = p.lines;
  // It deals out powers of two of token tiles apart from each other; where a tile less than
  // the widest is chosen, the number of all is what matters.
  if (C::kTokens == 192) lines.schedule = nullptr;
  const Params params{lines,
                      static_cast<int>(p.height),
                      static_cast<int>(p.width),
                      static_cast<int>(p.out / C::kSide),
                      static_cast<int>(cut.token_tiles),
                      static_cast<int>(Schedule::in_flight(p.in, C::kTokens * kCluster)),
                      {p.bias, p.activation, p.preactivation, p.y, p.ldy, static_cast<int>(p.out),
                       static_cast<int>(p.tokens)}};
  // It may start while the kernel before it in the stream, if of the same kind, ends.
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>(cut.clusters * kCluster);
  config.blockDim = kThreads;
  config.dynamicSmemBytes = kBytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return to_status(
      cudaLaunchKernelEx(&config, function, params, x_map, w_map, y_map, preactivation_map),
      "launching the Hopper SpMM kernel");
}

template <class Element, int Side, bool MContiguous>
Status launch_tokens(const SpmmProblem& p, Stream stream) {
  Device device;
  if (Status s = current_device(&device); !s.ok()) return s;
  const Cut cut = choose(p, device);
  return cut.tokens == 128   ? launch<Config<Element, Side, MContiguous, 128>>(p, cut, stream)
         : cut.tokens == 192 ? launch<Config<Element, Side, MContiguous, 192>>(p, cut, stream)
                             : launch<Config<Element, Side, MContiguous, 256>>(p, cut, stream);
}

template <class Element, int Side>
Status launch_order(const SpmmProblem& p, Stream stream) {
  return p.stride_m == 1 ? launch_tokens<Element, Side, true>(p, stream)
                         : launch_tokens<Element, Side, false>(p, stream);
}

template <class Element>
Status launch_element(const SpmmProblem& p, Stream stream) {
  return p.height == 16   ? launch_order<Element, 16>(p, stream)
         : p.height == 32 ? launch_order<Element, 32>(p, stream)
                          : launch_order<Element, 64>(p, stream);
}

}  // namespace

const char* refusal(const SpmmProblem& p) {
  if (p.dtype != DataType::bf16 && p.dtype != DataType::f16) return "not a 16-bit type";
  const bool is_small = p.height == p.width && (p.height == 16 || p.height == 32);
  if (!is_small && (p.height % 64 != 0 || p.width % 64 != 0)) {
    return "the blocks are not 16 x 16, 32 x 32, or of sides that are multiples of 64";
  }
  if (p.out % p.height != 0 || p.in % p.width != 0) return "features are not whole blocks";
  if (p.in < 1 || p.slots < 1) return "there is nothing to multiply";
  if (p.slots * std::max(p.height, p.width) > 0x7fffffff) {
    return "the slots are too many for 32-bit coordinates";
  }
  const std::int64_t tiles = (p.tokens / 256 + 1) * (p.out / 128 + 1);
  if (p.tokens > 0x7fff0000 || tiles > 0x7fff0000) return "too many tokens";
  for (const void* data :
       {p.x, p.values, static_cast<const void*>(p.y), static_cast<const void*>(p.preactivation)}) {
    if (const char* why = tensor_map_refusal(data, 0)) return why;
  }
  for (const std::int64_t stride : {p.ldx, p.ldy}) {
    if (const char* why = tensor_map_refusal(nullptr, stride)) return why;
  }
  return nullptr;
}

Status run(const SpmmProblem& p, Stream stream) {
  if (p.tokens == 0 || p.out == 0) return {};
  return p.dtype == DataType::bf16 ? launch_element<bf16>(p, stream)
                                   : launch_element<f16>(p, stream);
}

}  // namespace block_sparse::cuda::sm90::wide
