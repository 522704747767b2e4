// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "cuda/common/device.h"
#include "cuda/sm90/wide/kernel.cuh"
#include "cuda/sm90/wide/wide.h"

namespace block_sparse::cuda::sm90::wide {
namespace {

using generic::SpmmProblem;

template <class C>
Status launch(const SpmmProblem& p, Stream stream) {
  const bool is_bf16 = p.dtype == DataType::bf16;
  const auto map_of_output = [&](void* data, CUtensorMap* map) {
    return make_tensor_map({data, p.tokens, p.out, p.ldy, kBoxTokens, kOuts, is_bf16}, map);
  };
  // The slots as one tall matrix; a bound on their number is all that is needed.
  const std::int64_t slot_rows = p.slots * (C::kMContiguous ? p.width : p.height);
  const std::int64_t slot_cols = C::kMContiguous ? p.height : p.width;
  CUtensorMap x_map, w_map, y_map, preactivation_map;
  Status s = make_tensor_map({p.x, p.tokens, p.in, p.ldx, C::kTokens, kStageK, is_bf16}, &x_map);
  if (s.ok()) {
    s = make_tensor_map({p.values, slot_rows, slot_cols, slot_cols, 64, 64, is_bf16}, &w_map);
  }
  if (s.ok()) s = map_of_output(p.y, &y_map);
  if (s.ok()) {
    s = map_of_output(p.preactivation == nullptr ? p.y : p.preactivation, &preactivation_map);
  }
  if (!s.ok()) return s;

  Device device;
  if (s = current_device(&device); !s.ok()) return s;
  constexpr int kBytes = sizeof(Shared<C>) + 1024;
  static_assert(kBytes <= 227 * 1024);
  const auto function = kernel<C>;
  if (s = allow_shared_memory(function, kBytes); !s.ok()) return s;

  const std::int64_t segments = p.out / kOuts;
  const std::int64_t token_tiles = (p.tokens + C::kTokens * kCluster - 1) / (C::kTokens * kCluster);
  const std::int64_t items = (segments + kConsumers - 1) / kConsumers * token_tiles;
  const Params params{p.lines,
                      static_cast<int>(p.height),
                      static_cast<int>(p.width),
                      static_cast<int>(segments),
                      static_cast<int>(token_tiles),
                      static_cast<int>(Schedule::in_flight(p.in, C::kTokens * kCluster)),
                      {p.bias, p.activation, p.preactivation, p.y, p.ldy, static_cast<int>(p.out),
                       static_cast<int>(p.tokens)}};
  const auto clusters = std::min<std::int64_t>(items, device.multiprocessors / kCluster);
  function<<<static_cast<unsigned>(clusters * kCluster), kThreads, kBytes, stream>>>(
      params, x_map, w_map, y_map, preactivation_map);
  return to_status(cudaGetLastError(), "launching the Hopper SpMM kernel for wide blocks");
}

template <class Element, bool MContiguous>
Status launch_tokens(const SpmmProblem& p, Stream stream) {
  // Fewer tokens than one wide cluster tile would leave half of it idle.
  return p.tokens <= 256 ? launch<Config<Element, MContiguous, 128>>(p, stream)
                         : launch<Config<Element, MContiguous, 256>>(p, stream);
}

template <class Element>
Status launch_element(const SpmmProblem& p, Stream stream) {
  return p.stride_m == 1 ? launch_tokens<Element, true>(p, stream)
                         : launch_tokens<Element, false>(p, stream);
}

}  // namespace

const char* refusal(const SpmmProblem& p) {
  if (p.dtype != DataType::bf16 && p.dtype != DataType::f16) return "not a 16-bit type";
  if (p.height % 64 != 0 || p.width % 64 != 0) {
    return "a side of the blocks is not a multiple of 64";
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
