// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "cuda/common/launch.h"
#include "cuda/sm90/decode/decode.h"
#include "cuda/sm90/decode/kernel.cuh"

namespace block_sparse::cuda::sm90::decode {
namespace {

/// CTAs that share 64 outputs. Two where there is room for all of them at once, two a
/// multiprocessor; with four, adding up takes longer than it gains.
unsigned ctas_of(std::int64_t segments, const Device& device) {
  return segments <= device.multiprocessors ? 2 : 1;
}

template <class C>
Status launch(const SpmmProblem& p, Stream stream) {
  const bool is_bf16 = p.dtype == DataType::bf16;
  // The slots as one tall matrix; a bound on their number is all that is needed.
  const std::int64_t rows = p.slots * (C::kMContiguous ? p.width : p.height);
  const std::int64_t cols = C::kMContiguous ? p.height : p.width;
  CUtensorMap x_map, w_map;
  Status s = make_tensor_map({p.x, p.tokens, p.in, p.ldx, C::kTokens, kStageK, is_bf16}, &x_map);
  if (s.ok()) {
    s = make_tensor_map({p.values, rows, cols, cols, kStageK, kOuts, is_bf16}, &w_map);
  }
  Device device;
  if (s.ok()) s = current_device(&device);
  constexpr int kBytes = sizeof(Shared<C>) + 1024;  // room to align
  static_assert(2 * (kBytes + 1024) <= 228 * 1024);
  if (s.ok()) s = allow_shared_memory(kernel<C>, kBytes);
  if (!s.ok()) return s;
  const std::int64_t segments = p.out / kOuts;
  const unsigned ctas = ctas_of(segments, device);
  return DependentLaunch(device, static_cast<unsigned>(segments) * ctas, kThreads, kBytes, stream,
                         ctas)("launching the Hopper kernel for few tokens", kernel<C>, p, x_map,
                               w_map);
}

template <class Element, bool MContiguous>
Status launch_tokens(const SpmmProblem& p, Stream stream) {
  if (p.tokens <= 16) return launch<Config<Element, MContiguous, 16>>(p, stream);
  if (p.tokens <= 32) return launch<Config<Element, MContiguous, 32>>(p, stream);
  return launch<Config<Element, MContiguous, 64>>(p, stream);
}

template <class Element>
Status launch_element(const SpmmProblem& p, Stream stream) {
  return p.stride_m == 1 ? launch_tokens<Element, true>(p, stream)
                         : launch_tokens<Element, false>(p, stream);
}

}  // namespace

const char* refusal(const SpmmProblem& p) {
  if (p.dtype != DataType::bf16 && p.dtype != DataType::f16) return "not a 16-bit type";
  if (p.tokens < 1 || p.tokens > 64) return "not 1 to 64 tokens";
  if (p.height % 64 != 0 || p.width % 64 != 0) {
    return "a side of the blocks is not a multiple of 64";
  }
  if (p.out % p.height != 0 || p.in % p.width != 0) return "features are not whole blocks";
  if (p.in < 1 || p.out < 1 || p.slots < 1) return "there is nothing to multiply";
  if (p.in > 0x7fff0000 || p.out > 0x7fff0000) return "too many features";
  if (p.slots * std::max(p.height, p.width) > 0x7fffffff) {
    return "the slots are too many for 32-bit coordinates";
  }
  for (const void* data : {p.x, p.values}) {
    if (const char* why = tensor_map_refusal(data, 0)) return why;
  }
  return tensor_map_refusal(nullptr, p.ldx);
}

Status run(const SpmmProblem& p, Stream stream) {
  return p.dtype == DataType::bf16 ? launch_element<bf16>(p, stream)
                                   : launch_element<f16>(p, stream);
}

}  // namespace block_sparse::cuda::sm90::decode
