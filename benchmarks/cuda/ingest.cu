// SPDX-License-Identifier: Apache-2.0
// How fast a Hopper GPU fills shared memory from L2: the limit of every kernel that
// multiplies few weights with many tokens.
//
// Usage: block_sparse_cuda_ingest
//
// Method: one persistent CTA a multiprocessor; a warp keeps a ring of stages filled, by
// the copy engine with boxes of `rows` x 64 features of x (16-bit, 2048 x 4096 of it in
// turn, which stay in L2) and with small copies of weights from random places, and
// another warp gives each stage back as soon as it is full. Best of three runs of 2,560
// stages. `multicast`: CTAs of a cluster that share x, of which each loads its part.
#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "check.h"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/tma.cuh"

namespace {

namespace ptx = block_sparse::cuda::ptx;

constexpr int kFeatures = 4096;
constexpr int kTokens = 2048;
constexpr int kChunks = kFeatures / 64;
constexpr int kRepeats = 40;
constexpr int kThreads = 256;
constexpr int kWeightBytes = 32 << 20;

/// RowBytes: of a box of x; 64 features come in 128 / RowBytes boxes.
template <int Rows, int RowBytes, int Multicast, int Stages, int Copies, int CopyBytes>
struct Case {
  static constexpr int kBoxes = 128 / RowBytes;
  static constexpr int kXBytes = Rows * 128;
  static constexpr int kStageBytes = kXBytes + (Copies * CopyBytes + 1023) / 1024 * 1024;
  static constexpr int kSharedBytes = Stages * kStageBytes;
};

__device__ __forceinline__ void copy_bulk(void* to, const void* from, unsigned bytes,
                                          std::uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(ptx::shared_address(to)),
      "l"(from), "r"(bytes), "r"(ptx::shared_address(barrier))
      : "memory");
}

template <int Rows, int RowBytes, int Multicast, int Stages, int Copies, int CopyBytes>
__global__ void __launch_bounds__(kThreads, 1)
    fill(const __grid_constant__ CUtensorMap map, const char* weights, int clusters) {
  using C = Case<Rows, RowBytes, Multicast, Stages, Copies, CopyBytes>;
  extern __shared__ __align__(1024) unsigned char stages[];
  __shared__ std::uint64_t full[Stages], empty[Stages];
  const int rank = static_cast<int>(ptx::cluster_rank());
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (threadIdx.x == 0) {
    for (int s = 0; s < Stages; ++s) {
      ptx::barrier_init(&full[s], 1);
      ptx::barrier_init(&empty[s], Multicast);
    }
    ptx::fence_barrier_init();
  }
  ptx::cluster_sync();
  ptx::Ring<Stages> ring;
  if (warp == 0) {
    unsigned seed = blockIdx.x * 7919 + lane * 104729 + 12345;
    for (int i = 0; i < kRepeats * kChunks; ++i) {
      const int tile = (blockIdx.x / Multicast + i / kChunks * clusters) % (kTokens / Rows);
      ptx::barrier_wait(&empty[ring.stage], ring.parity ^ 1);
      std::uint64_t* barrier = &full[ring.stage];
      unsigned char* stage = stages + ring.stage * C::kStageBytes;
      if (lane == 0) ptx::barrier_arrive_expect(barrier, C::kXBytes + Copies * CopyBytes);
      __syncwarp();
      if (lane < C::kBoxes) {
        unsigned char* box = stage + lane * Rows * RowBytes;
        const int col = i % kChunks * 64 + lane * RowBytes / 2;
        if constexpr (Multicast == 1) {
          ptx::load_box(&map, box, barrier, tile * Rows, col);
        } else {
          const int part = rank * (Rows / Multicast);
          ptx::load_box_multicast(&map, box + part * RowBytes, barrier, tile * Rows + part, col,
                                  (1 << Multicast) - 1);
        }
      }
      if (lane < Copies) {
        seed = seed * 1664525u + 1013904223u;
        const std::size_t from = seed % (kWeightBytes / std::max(CopyBytes, 1));
        copy_bulk(stage + C::kXBytes + lane * CopyBytes, weights + from * CopyBytes, CopyBytes,
                  barrier);
      }
      ring.advance();
    }
  } else if (warp == 4) {
    for (int i = 0; i < kRepeats * kChunks; ++i) {
      ptx::barrier_wait(&full[ring.stage], ring.parity);
      if (lane == rank) {
        ptx::barrier_arrive(&empty[ring.stage]);
      } else if (lane < Multicast) {
        ptx::barrier_arrive_cluster(&empty[ring.stage], lane);
      }
      ring.advance();
    }
  }
  __syncthreads();
  ptx::cluster_sync();
}

class Bench {
 public:
  Bench() {
    cudaDriverEntryPointQueryResult result;
    void* entry = nullptr;
    CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000,
                                           cudaEnableDefault, &result));
    encode_ = reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(entry);
    CHECK(cudaMalloc(&x_, std::size_t(kTokens) * kFeatures * 2));
    CHECK(cudaMalloc(&weights_, kWeightBytes));
    CHECK(cudaMemset(x_, 1, std::size_t(kTokens) * kFeatures * 2));
    CHECK(cudaMemset(weights_, 1, kWeightBytes));
    CHECK(cudaEventCreate(&begin_));
    CHECK(cudaEventCreate(&end_));
    CHECK(cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, 0));
    CHECK(cudaDeviceGetAttribute(&kilohertz_, cudaDevAttrClockRate, 0));
    std::printf("%5s %9s %9s %6s %13s %12s %18s %9s\n", "rows", "row bytes", "multicast", "stages",
                "small copies", "ingest TB/s", "bytes/clock and SM", "stage ns");
  }

  template <int Rows, int RowBytes, int Multicast, int Stages, int Copies = 0, int CopyBytes = 0>
  void run() {
    using C = Case<Rows, RowBytes, Multicast, Stages, Copies, CopyBytes>;
    CUtensorMap map;
    const cuuint64_t sizes[2] = {kFeatures, kTokens};
    const cuuint64_t strides[1] = {kFeatures * 2};
    const cuuint32_t box[2] = {RowBytes / 2, Rows / Multicast};
    const cuuint32_t steps[2] = {1, 1};
    constexpr auto kSwizzle = RowBytes == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
                              : RowBytes == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                               : CU_TENSOR_MAP_SWIZZLE_32B;
    CHECK(encode_(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, x_, sizes, strides, box, steps,
                  CU_TENSOR_MAP_INTERLEAVE_NONE, kSwizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE));
    const auto function = fill<Rows, RowBytes, Multicast, Stages, Copies, CopyBytes>;
    CHECK(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               C::kSharedBytes));
    const int clusters = multiprocessors_ / Multicast;
    cudaLaunchAttribute cluster[1];
    cluster[0].id = cudaLaunchAttributeClusterDimension;
    cluster[0].val.clusterDim = {Multicast, 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(clusters * Multicast));
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = C::kSharedBytes;
    config.attrs = cluster;
    config.numAttrs = 1;
    float best = 1e9f;
    for (int i = 0; i < 4; ++i) {
      CHECK(cudaEventRecord(begin_));
      CHECK(
          cudaLaunchKernelEx(&config, function, map, static_cast<const char*>(weights_), clusters));
      CHECK(cudaEventRecord(end_));
      CHECK(cudaEventSynchronize(end_));
      float ms = 0;
      CHECK(cudaEventElapsedTime(&ms, begin_, end_));
      if (i > 0) best = std::min(best, ms);
    }
    const double bytes =
        double(clusters) * Multicast * kRepeats * kChunks * (C::kXBytes + Copies * CopyBytes);
    const double clocks = double(best) * kilohertz_;
    char copies[32];
    std::snprintf(copies, sizeof(copies), "%d x %d", Copies, CopyBytes);
    std::printf("%5d %9d %9d %6d %13s %12.2f %18.1f %9.1f\n", Rows, RowBytes, Multicast, Stages,
                copies, bytes / double(best) * 1e-9, bytes / clocks / multiprocessors_,
                double(best) * 1e6 / (kRepeats * kChunks));
  }

 private:
  PFN_cuTensorMapEncodeTiled_v12000 encode_ = nullptr;
  void* x_ = nullptr;
  void* weights_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
  int multiprocessors_ = 0, kilohertz_ = 0;
};

}  // namespace

int main() {
  Bench bench;
  bench.run<256, 128, 1, 4>();
  bench.run<256, 128, 1, 6>();
  bench.run<128, 128, 1, 8>();
  bench.run<64, 128, 1, 12>();
  bench.run<256, 64, 1, 6>();
  bench.run<256, 32, 1, 6>();
  // Shared by the CTAs of a cluster; with few stages the way from the last reader back to
  // the next load counts.
  bench.run<256, 128, 2, 3>();
  bench.run<256, 128, 2, 4>();
  bench.run<256, 128, 2, 6>();
  bench.run<128, 128, 2, 12>();
  bench.run<128, 64, 2, 12>();
  bench.run<256, 128, 4, 6>();
  bench.run<128, 128, 4, 12>();
  // Small copies beside x.
  bench.run<128, 128, 1, 8, 8, 512>();
  bench.run<128, 128, 1, 8, 16, 512>();
  bench.run<128, 128, 1, 6, 32, 512>();
  bench.run<64, 128, 1, 8, 32, 512>();
  bench.run<128, 128, 1, 8, 4, 2048>();
  bench.run<128, 128, 1, 6, 8, 2048>();
  bench.run<128, 128, 2, 8, 4, 2048>();
  bench.run<128, 128, 2, 8, 8, 512>();
  return 0;
}
