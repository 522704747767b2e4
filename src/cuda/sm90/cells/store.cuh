// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/tma.cuh"
#include "cuda/sm90/cells/config.cuh"

namespace block_sparse::cuda::sm90::cells {

/// The first cell of a worker, of the CTA's.
template <class C>
__device__ __forceinline__ int first_cell(const Task& task, int worker) {
  return worker * (task.count / C::kTogether) / C::kWorkers * C::kTogether;
}
template <class C>
__device__ __forceinline__ int cells_of(const Task& task, int worker) {
  return first_cell<C>(task, worker + 1) - first_cell<C>(task, worker);
}

/// Where four sums of a thread lie in the worker's cells: at (row, column) and
/// (row, column + 1), and at the same of row + 8.
struct Quad {
  int cell;
  int row, column;
};

/// Stores `quads` times four of the sums `d` of each thread of a worker; `place` says
/// where they lie. Where the CTAs of a cluster have each a part of the tokens, each
/// adds up, in order, the parts of a share of the sums, in shared memory.
template <class C>
struct SumStore {
  const Params& p;
  Shared<C>& shared;
  const Target* targets;  // of the worker

  template <class Place, int N>
  __device__ __forceinline__ void run(const float (&d)[N], int quads, Place&& place) const {
    if constexpr (C::kCluster == 1) {
      if (p.rounds.parts > 1) return add_parts(d, quads, place);
    }
#pragma unroll
    for (int q = 0; q < N / 4; ++q) {
      if (q < quads) put(place(q), make_float4(d[4 * q], d[4 * q + 1], d[4 * q + 2], d[4 * q + 3]));
    }
  }

 private:
  template <class Place, int N>
  __device__ __forceinline__ void add_parts(const float (&d)[N], int quads, Place&& place) const {
    constexpr int kConsumerThreads = 128 * kConsumers;
    static_assert(ceil_div(N / 4, kMaxParts) * kMaxParts * kConsumerThreads * sizeof(float4) <=
                  kRingBytes);
    const int thread = static_cast<int>(threadIdx.x) - 128;
    const int rank = static_cast<int>(ptx::cluster_rank());
    const int share = ceil_div(quads, p.rounds.parts);
    auto* const sums = reinterpret_cast<float4*>(shared.ring) + thread;
    // The stages of all have been read.
    ptx::cluster_sync();
    int owner = 0;
    int index = 0;  // in the owner's share
#pragma unroll
    for (int q = 0; q < N / 4; ++q) {
      if (q >= quads) break;
      ptx::store_cluster_x4(ptx::shared_address(sums + (rank * share + index) * kConsumerThreads),
                            owner, make_float4(d[4 * q], d[4 * q + 1], d[4 * q + 2], d[4 * q + 3]));
      if (++index == share) {
        index = 0;
        ++owner;
      }
    }
    ptx::cluster_sync();
    for (index = 0; index < share && rank * share + index < quads; ++index) {
      float4 sum = sums[index * kConsumerThreads];
      for (int part = 1; part < p.rounds.parts; ++part) {
        const float4 v = sums[(part * share + index) * kConsumerThreads];
        sum = make_float4(sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w);
      }
      put(place(rank * share + index), sum);
    }
    // The copy engine writes there next.
    ptx::fence_async_reads();
  }

  __device__ __forceinline__ void put(const Quad& at, const float4& v) const {
    const Target& target = targets[at.cell];
    if (C::kTogether > 1 && target.slot < 0) return;
    const int element = target.at + at.row * p.block_width + at.column;
    p.output.template store<typename C::Element>(target.slot, element, v.x, v.y);
    p.output.template store<typename C::Element>(target.slot, element + 8 * p.block_width, v.z,
                                                 v.w);
  }
};

}  // namespace block_sparse::cuda::sm90::cells
