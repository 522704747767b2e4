// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "cuda/common/device.h"
#include "cuda/sm90/spmm/kernel.cuh"
#include "cuda/sm90/spmm/spmm.h"

namespace block_sparse::cuda::sm90::spmm {
namespace {

using generic::SpmmProblem;

bool m_contiguous(const SpmmProblem& p) { return p.stride_m == 1; }

template <class C>
Status launch(const SpmmProblem& p, Stream stream) {
  const bool is_bf16 = p.dtype == DataType::bf16;
  CUtensorMap x_map, w_map;
  Status s = make_tensor_map({p.x, p.tokens, p.in, p.ldx, C::kTokens, C::kXDepth, is_bf16}, &x_map);
  if (s.ok()) {
    // Whole blocks as rows of 128 bytes: fewer requests than rows of 32 or 64. A bound on
    // the number of slots is all that is needed.
    constexpr int kRows = C::kBlockBytes / 128;
    s = make_tensor_map({p.values, p.slots * kRows, kStageK, kStageK, kRows, kStageK, is_bf16},
                        &w_map);
  }
  if (!s.ok()) return s;

  Device device;
  if (s = current_device(&device); !s.ok()) return s;
  constexpr int kBytes = sizeof(Shared<C>) + 1024;
  const auto function = kernel<C>;
  if (s = allow_shared_memory(function, kBytes); !s.ok()) return s;

  const std::int64_t segments = (p.out + kOuts - 1) / kOuts;
  const std::int64_t token_tiles = (p.tokens + C::kTokens * kCluster - 1) / (C::kTokens * kCluster);
  const std::int64_t items = (segments + kConsumers - 1) / kConsumers * token_tiles;
  const Params params{p.lines,
                      static_cast<int>(p.in / p.width),
                      static_cast<int>(segments),
                      static_cast<int>(token_tiles),
                      static_cast<int>(Schedule::in_flight(p.in, C::kTokens * kCluster)),
                      {p.bias, p.activation, p.preactivation, p.y, p.ldy, static_cast<int>(p.out),
                       static_cast<int>(p.tokens)}};
  const auto clusters = std::min<std::int64_t>(items, device.multiprocessors / kCluster);
  function<<<static_cast<unsigned>(clusters * kCluster), kThreads, kBytes, stream>>>(params, x_map,
                                                                                     w_map);
  return to_status(cudaGetLastError(), "launching the Hopper SpMM kernel");
}

template <class Element, int Side, bool MContiguous>
Status launch_tokens(const SpmmProblem& p, Stream stream) {
  // Fewer tokens than one wide cluster tile would leave half of it idle.
  return p.tokens <= 256 ? launch<Config<Element, Side, MContiguous, 128>>(p, stream)
                         : launch<Config<Element, Side, MContiguous, 256>>(p, stream);
}

template <class Element, bool MContiguous>
Status launch_side(const SpmmProblem& p, Stream stream) {
  return p.height == 16 ? launch_tokens<Element, 16, MContiguous>(p, stream)
                        : launch_tokens<Element, 32, MContiguous>(p, stream);
}

template <class Element>
Status launch_element(const SpmmProblem& p, Stream stream) {
  return m_contiguous(p) ? launch_side<Element, true>(p, stream)
                         : launch_side<Element, false>(p, stream);
}

}  // namespace

const char* refusal(const SpmmProblem& p) {
  if (p.dtype != DataType::bf16 && p.dtype != DataType::f16) return "not a 16-bit type";
  if (p.height != p.width || (p.height != 16 && p.height != 32)) {
    return "the blocks are not 16 x 16 or 32 x 32";
  }
  if (p.out % p.height != 0 || p.in % p.width != 0) return "features are not whole blocks";
  if (p.in < 1 || p.slots < 1) return "there is nothing to multiply";
  if (p.slots * p.height > 0x7fffffff) {
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

}  // namespace block_sparse::cuda::sm90::spmm
