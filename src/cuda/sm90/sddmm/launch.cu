// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <limits>

#include "cuda/common/device.h"
#include "cuda/sddmm/finish.h"
#include "cuda/sm90/sddmm/kernel.cuh"
#include "cuda/sm90/sddmm/sddmm.h"

namespace block_sparse::cuda::sm90::sddmm {
namespace {

/// Pieces of work if every slot is used and lines hold whole pieces; the true
/// number is known on the device only.
std::int64_t pieces_of(const WeightGradientArgs& a) {
  const std::int64_t blocks = a.pattern.block_height == 128 ? 2 : 8;
  return std::max<std::int64_t>((a.pattern.slots + blocks - 1) / blocks, 1);
}

template <class C>
Status launch(const WeightGradientArgs& a, Stream stream) {
  const PatternView& w = a.pattern;
  const bool is_bf16 = a.dtype == DataType::bf16;
  CUtensorMap dy_map, x_map;
  Status s = make_tensor_map({a.dy, a.tokens, w.rows, a.lddy, kStageTokens, 64, is_bf16}, &dy_map);
  if (s.ok()) {
    s = make_tensor_map({a.x, a.tokens, w.cols, a.ldx, kStageTokens, 64, is_bf16}, &x_map);
  }
  Device device;
  if (s.ok()) s = current_device(&device);
  constexpr int kBytes = sizeof(Shared<C>) + 1024;  // room to align
  if (s.ok()) s = allow_shared_memory(kernel<C>, kBytes);
  if (!s.ok()) return s;
  const Splits splits = choose_splits(a, pieces_of(a), kStageTokens, device.multiprocessors,
                                      a.workspace.data == nullptr ? 0 : a.workspace.bytes);
  const Params params{
      {w.crow_indices, static_cast<int>(w.n_block_rows()), static_cast<int>(a.tokens), splits.count,
       splits.tokens},
      w,
      {a.dvalues, splits.count > 1 ? static_cast<float*>(a.workspace.data) : nullptr, w.slots,
       C::kSide * C::kSide, a.out_dtype == DataType::f32, a.accumulate}};
  kernel<C><<<static_cast<unsigned>(device.multiprocessors), kThreads, kBytes, stream>>>(
      params, dy_map, x_map);
  s = to_status(cudaGetLastError(), "launching the Hopper weight gradient kernel");
  return s.ok() ? finish_weight_gradient(a, splits.count, stream) : s;
}

template <class Element>
Status launch_side(const WeightGradientArgs& a, Stream stream) {
  return a.pattern.block_height == 128 ? launch<Config<Element, 128>>(a, stream)
                                       : launch<Config<Element, 64>>(a, stream);
}

}  // namespace

const char* refusal(const WeightGradientArgs& a) {
  const PatternView& w = a.pattern;
  if (a.dtype != DataType::bf16 && a.dtype != DataType::f16) return "not a 16-bit type";
  if (w.block_height != w.block_width || (w.block_height != 64 && w.block_height != 128)) {
    return "the blocks are not 64 x 64 or 128 x 128";
  }
  if (w.rows % w.block_height != 0 || w.cols % w.block_width != 0) {
    return "features are not whole blocks";
  }
  if (w.rows < 1 || w.cols < 1) return "there are no features";
  if (a.tokens < 1 || a.tokens > 0x7fff0000) return "no tokens, or too many";
  if (w.slots > 0x7fffffff / 8) return "too many slots";
  for (const void* data : {a.dy, a.x}) {
    if (const char* why = tensor_map_refusal(data, 0)) return why;
  }
  for (const std::int64_t stride : {a.lddy, a.ldx}) {
    if (const char* why = tensor_map_refusal(nullptr, stride)) return why;
  }
  return nullptr;
}

Status run(const WeightGradientArgs& a, Stream stream) {
  return a.dtype == DataType::bf16 ? launch_side<bf16>(a, stream) : launch_side<f16>(a, stream);
}

std::size_t workspace(const WeightGradientArgs& a) {
  Device device;
  if (!current_device(&device).ok()) return 0;
  const Splits splits = choose_splits(a, pieces_of(a), kStageTokens, device.multiprocessors,
                                      std::numeric_limits<std::size_t>::max());
  return partial_bytes(a, splits.count);
}

}  // namespace block_sparse::cuda::sm90::sddmm
