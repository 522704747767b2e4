// SPDX-License-Identifier: Apache-2.0
#include "cuda/sddmm/finish.h"

#include <algorithm>

#include "cuda/common/element.cuh"
#include "cuda/common/launch.h"
#include "cuda/ptx/launch.cuh"

namespace block_sparse::cuda {
namespace {

constexpr int kMaxSplits = 8;
// Partial sums cost bandwidth; shorter parts would not be worth it.
constexpr std::int64_t kMinTokens = 512;

/// A CTA per block in BSR order, spare slots after them.
template <class Out>
__global__ void finish_kernel(PatternView w, int lines, int splits, const float* partial,
                              bool accumulate, Out* dvalues) {
  ptx::wait_for_kernels_before();
  const auto elements = w.block_height * w.block_width;
  for (std::int64_t i = blockIdx.x; i < w.slots; i += gridDim.x) {
    const bool stored = i < w.crow_indices[lines];
    if (!stored && accumulate) continue;
    const std::int64_t base = w.block_ids[i] * elements;
    for (std::int64_t e = threadIdx.x; e < elements; e += blockDim.x) {
      float sum = 0;
      if (stored) {
        for (int s = 0; s < splits; ++s) sum += partial[s * w.slots * elements + base + e];
        if (accumulate) sum += widen(dvalues[base + e]);
      }
      dvalues[base + e] = narrow<Out>(sum);
    }
  }
}

}  // namespace

std::size_t partial_bytes(const WeightGradientArgs& a, int splits) {
  if (splits < 2) return 0;
  return static_cast<std::size_t>(splits * a.pattern.slots * a.pattern.block_height *
                                  a.pattern.block_width) *
         sizeof(float);
}

Splits choose_splits(const WeightGradientArgs& a, std::int64_t pieces, int multiple,
                     int multiprocessors, std::size_t workspace_bytes) {
  // Four rounds of pieces leave at most a fifth of the machine idle at the end.
  const std::int64_t wanted =
      (4 * multiprocessors + pieces - 1) / std::max<std::int64_t>(pieces, 1);
  int count = static_cast<int>(
      std::clamp<std::int64_t>(std::min(wanted, a.tokens / kMinTokens), 1, kMaxSplits));
  while (count > 1 && partial_bytes(a, count) > workspace_bytes) --count;
  const std::int64_t tokens = (a.tokens + count - 1) / count;
  Splits splits;
  splits.tokens = static_cast<int>((tokens + multiple - 1) / multiple * multiple);
  splits.count = static_cast<int>((a.tokens + splits.tokens - 1) / splits.tokens);
  return splits;
}

Status finish_weight_gradient(const WeightGradientArgs& a, int splits, Stream stream) {
  if (splits == 1 || a.pattern.slots == 0) return {};
  Device device;
  Status status = current_device(&device);
  if (!status.ok()) return status;
  const auto grid = static_cast<unsigned>(std::min<std::int64_t>(a.pattern.slots, 8192));
  const int lines = static_cast<int>(a.pattern.n_block_rows());
  const auto* partial = static_cast<const float*>(a.workspace.data);
  with_element(a.out_dtype, [&](auto element) {
    using Out = decltype(element);
    if constexpr (!std::is_same_v<Out, double>) {
      status = DependentLaunch(device, grid, 256, 0, stream)(
          "launching finish_kernel", finish_kernel<Out>, a.pattern, lines, splits, partial,
          a.accumulate, static_cast<Out*>(a.dvalues));
    }
  });
  return status;
}

}  // namespace block_sparse::cuda
