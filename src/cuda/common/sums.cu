// SPDX-License-Identifier: Apache-2.0
#include "cuda/common/sums.h"

#include "cuda/common/element.cuh"
#include "cuda/common/launch.h"
#include "cuda/ptx/launch.cuh"

namespace block_sparse::cuda {
namespace {

constexpr int kColumns = 32;  // of a CTA
constexpr int kParts = 8;     // of the rows, whose sums are added in order

template <class T, class Out>
__global__ void __launch_bounds__(kColumns* kParts)
    kernel(const T* x, std::int64_t ldx, int rows, std::int64_t features, Out* y) {
  __shared__ float sums[kParts][kColumns];
  ptx::wait_for_kernels_before();
  const int part = static_cast<int>(threadIdx.x) / kColumns;
  const int lane = static_cast<int>(threadIdx.x) % kColumns;
  const std::int64_t column = std::int64_t(blockIdx.x) * kColumns + lane;
  float sum = 0;
  if (column < features) {
#pragma unroll 8
    for (int row = part; row < rows; row += kParts) sum += widen(x[row * ldx + column]);
  }
  sums[part][lane] = sum;
  __syncthreads();
  if (part > 0 || column >= features) return;
#pragma unroll
  for (int other = 1; other < kParts; ++other) sum += sums[other][lane];
  y[column] = narrow<Out>(sum);
}

}  // namespace

Status sum_of_rows(DataType type, DataType out_type, const void* x, std::int64_t ldx,
                   std::int64_t rows, std::int64_t features, void* y, Stream stream) {
  if (features == 0) return {};
  Device device;
  Status status = current_device(&device);
  if (!status.ok()) return status;
  const auto ctas = static_cast<unsigned>((features + kColumns - 1) / kColumns);
  const DependentLaunch launch(device, ctas, kColumns * kParts, 0, stream);
  const auto run = [&]<class T, class Out>(T, Out) {
    return launch("launching the sum of rows", kernel<T, Out>, static_cast<const T*>(x), ldx,
                  static_cast<int>(rows), features, static_cast<Out*>(y));
  };
  if (type == DataType::f32) return run(float{}, float{});
  const bool widens = out_type == DataType::f32;
  if (type == DataType::bf16) return widens ? run(bf16{}, float{}) : run(bf16{}, bf16{});
  return widens ? run(f16{}, float{}) : run(f16{}, f16{});
}

}  // namespace block_sparse::cuda
