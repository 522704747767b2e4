// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "cuda/common/device.h"
#include "cuda/sm90/lists/kernel.cuh"
#include "cuda/sm90/lists/lists.h"

namespace block_sparse::cuda::sm90::lists {
namespace {

using generic::SpmmProblem;

template <class C>
Status launch(const SpmmProblem& p, Stream stream) {
  CUtensorMap x_map;
  Status s = make_tensor_map(
      {p.x, p.tokens, p.in, p.ldx, kTokens / C::kCluster, kBoxK, p.dtype == DataType::bf16},
      &x_map);
  if (!s.ok()) return s;
  Device device;
  if (s = current_device(&device); !s.ok()) return s;
  constexpr int kBytes = sizeof(Shared<C>) + 1024;
  static_assert(kBytes <= 227 * 1024);
  const auto function = kernel<C>;
  if (s = allow_shared_memory(function, kBytes); !s.ok()) return s;

  const std::int64_t segments = (p.out + kOuts - 1) / kOuts;
  const std::int64_t groups = (segments + kSegments * C::kCluster - 1) / (kSegments * C::kCluster);
  const std::int64_t token_tiles = (p.tokens + kTokens - 1) / kTokens;
  const int stages = stages_of(p);
  const Params params{
      p.lines,
      static_cast<int>((p.in + kStageK - 1) / kStageK),
      static_cast<int>(segments),
      static_cast<int>(groups),
      static_cast<int>(token_tiles),
      static_cast<int>(std::max<std::int64_t>(kInFlightBytes / (p.in * 2 * kTokens), 1)),
      stages,
      (kRingBytes - stages * kStageBytes) / C::kBlockBytes,
      p.values,
      {p.bias, p.activation, p.preactivation, p.y, p.ldy, static_cast<int>(p.out),
       static_cast<int>(p.tokens)}};
  const auto clusters =
      std::min<std::int64_t>(groups * token_tiles, device.multiprocessors / C::kCluster);
  function<<<static_cast<unsigned>(clusters * C::kCluster), kThreads, kBytes, stream>>>(params,
                                                                                        x_map);
  return to_status(cudaGetLastError(), "launching the Hopper SpMM kernel on lists of blocks");
}

template <class Element, int Side, bool NContiguous>
Status launch_cluster(const SpmmProblem& p, Stream stream) {
  // A cluster with nothing for its second CTA to do would leave it idle.
  return p.out <= kSegments * kOuts
             ? launch<Config<Element, Side, Side, NContiguous, 1>>(p, stream)
             : launch<Config<Element, Side, Side, NContiguous, 2>>(p, stream);
}

template <class Element, bool NContiguous>
Status launch_side(const SpmmProblem& p, Stream stream) {
  return p.height == 16 ? launch_cluster<Element, 16, NContiguous>(p, stream)
                        : launch_cluster<Element, 32, NContiguous>(p, stream);
}

template <class Element>
Status launch_element(const SpmmProblem& p, Stream stream) {
  const bool n_contiguous = p.stride_m == 1;
  return n_contiguous ? launch_side<Element, true>(p, stream)
                      : launch_side<Element, false>(p, stream);
}

}  // namespace

Status run(const SpmmProblem& p, Stream stream) {
  if (p.tokens == 0 || p.out == 0) return {};
  return p.dtype == DataType::bf16 ? launch_element<bf16>(p, stream)
                                   : launch_element<f16>(p, stream);
}

}  // namespace block_sparse::cuda::sm90::lists
