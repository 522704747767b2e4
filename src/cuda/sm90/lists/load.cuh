// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/ptx/matrix.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/ptx/tma.cuh"
#include "cuda/sm90/lists/config.cuh"

namespace block_sparse::cuda::sm90::lists {

/// The thread that loads x, all of it whatever blocks there are. In a cluster each CTA
/// loads its share of the tokens for all.
template <class C>
__device__ void load_x(const Params& p, const CUtensorMap* x_map, Shared<C>& shared) {
  const int rank = C::kCluster == 1 ? 0 : static_cast<int>(ptx::cluster_rank());
  const std::uint32_t x0 = ptx::kept(ptx::shared_address(shared.ring));
  const std::uint32_t full0 = ptx::kept(ptx::shared_address(shared.x_full));
  const std::uint32_t empty0 = ptx::kept(ptx::shared_address(shared.x_empty));
  StageRing ring;
  for_each_tile<C>(p, [&](int, int token0) {
    for (int chunk = 0; chunk < p.chunks; ++chunk) {
      const std::uint32_t full = full0 + ring.stage * 8;
      ptx::barrier_wait(empty0 + ring.stage * 8, ring.parity ^ 1);
      ptx::barrier_arrive_expect(full, kStageBytes);
#pragma unroll
      for (int box = 0; box < 2; ++box) {
        const std::uint32_t to =
            x0 + ring.stage * kStageBytes + box * kBoxBytes + rank * (kBoxBytes / C::kCluster);
        const int feature = chunk * kStageK + box * kBoxK;
        if constexpr (C::kCluster == 1) {
          ptx::load_box(x_map, to, full, token0, feature);
        } else {
          ptx::load_box_multicast(x_map, to, full, token0 + rank * (kTokens / C::kCluster), feature,
                                  (1 << C::kCluster) - 1);
        }
      }
      ring.advance(p.stages);
    }
  });
}

/// The warp that reads the index: which blocks the lines of the tile have in the next
/// 32 positions, and their slots.
template <class C>
struct Reader {
  const Params& p;
  Shared<C>& shared;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int next = 0;  // lane i: the first block of line i that has not been passed
  int end = 0;

  __device__ void start(int first_segment) {
    next = end = 0;
    const int line = lane < C::kLines ? line_of<C>(p, first_segment, lane) : -1;
    if (line >= 0) {
      next = p.lines.pointers[line];
      end = p.lines.pointers[line + 1];
    }
  }

  __device__ void read(int first, Window<C>& window) {
    constexpr int kTogether = 4;  // lines whose reads are under way at once
    unsigned present = 0;
#pragma unroll 1
    for (int group = 0; group < C::kLines; group += kTogether) {
      int at[kTogether], slot[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const int from = __shfl_sync(~0u, next, group + i) + lane;
        const bool valid = from < __shfl_sync(~0u, end, group + i);
        at[i] = valid ? p.lines.others[from] - first : kWindow;
        slot[i] = valid ? p.lines.block_ids[from] : 0;
      }
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const bool inside = at[i] < kWindow;
        const unsigned mask = __reduce_or_sync(~0u, inside ? 1u << at[i] : 0u);
        if (inside) window.slots[group + i][at[i]] = slot[i];
        if (lane == group + i) {
          present = mask;
          next += __popc(mask);
        }
      }
    }
    if (lane < C::kLines) window.present[lane] = present;
  }

  __device__ void operator()() {
    ptx::Ring<2> ring;
    for_each_tile<C>(p, [&](int first_segment, int) {
      start(first_segment);
      for (int chunk = 0; chunk < p.chunks; chunk += C::kWindowStages) {
        Window<C>& window = shared.windows[ring.stage];
        ptx::barrier_wait(&shared.window_empty[ring.stage], ring.parity ^ 1);
        read(chunk * C::kParts, window);
        __syncwarp();
        if (lane == 0) ptx::barrier_arrive(&shared.window_full[ring.stage]);
        ring.advance();
      }
    });
  }
};

/// The warp that puts the blocks of each stage in the order (consumer, row, part), in one
/// batch, or in two where there are more than half of all there could be.
template <class C>
struct Lister {
  const Params& p;
  Shared<C>& shared;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int number = 0;  // of the next batch
  int before = 0;  // blocks listed so far
  int place = 0;   // of the next block

  /// Lane i has the bits of line i and how many blocks come before its first.
  __device__ __forceinline__ void list(unsigned mine, const int* slots, int rank, int count,
                                       bool more) {
    const int at = number % kBatches;
    ptx::barrier_wait(&shared.listed_empty[at], number / kBatches & 1 ^ 1);
    if (lane < C::kLines) {
      List<C>& list = shared.lists[number % kListed][lane / C::kRows];
      const int row = lane % C::kRows;
      reinterpret_cast<unsigned char*>(list.rows)[row] = static_cast<unsigned char>(mine);
      if (row == 0) {
        const int first = place + rank;
        list.first = (first >= p.blocks ? first - p.blocks : first) | (more ? List<C>::kMore : 0);
      }
    }
    if (lane == 31) {
      shared.batches[number % kListed] = {before, static_cast<short>(place),
                                          static_cast<short>(count), more};
    }
    for (; mine != 0; mine &= mine - 1) {
      shared.slots[at][rank++] = slots[__ffs(static_cast<int>(mine)) - 1];
    }
    __syncwarp();
    if (lane == 0) ptx::barrier_arrive(&shared.listed[at]);
    ++number;
    before += count;
    place += count;
    if (place >= p.blocks) place -= p.blocks;
  }

  __device__ void operator()() {
    constexpr int kHalf = C::kParts / 2;
    constexpr unsigned kHalfBits = (1u << kHalf) - 1;
    const unsigned below = (1u << lane) - 1;
    ptx::Ring<2> windows;
    for_each_tile<C>(p, [&](int, int) {
      for (int chunk = 0; chunk < p.chunks; chunk += C::kWindowStages) {
        const Window<C>& window = shared.windows[windows.stage];
        ptx::barrier_wait(&shared.window_full[windows.stage], windows.parity);
        const int line = lane < C::kLines ? lane : 0;
        unsigned present = lane < C::kLines ? window.present[line] : 0;
        const int* slots = window.slots[line];
        const int stages = min(C::kWindowStages, p.chunks - chunk);
        for (int i = 0; i < stages; ++i) {
          int rank[2] = {0, 0}, count[2] = {0, 0};  // in the halves of the stage
#pragma unroll
          for (int part = 0; part < C::kParts; ++part) {
            const unsigned stored = __ballot_sync(~0u, present >> part & 1);
            rank[part / kHalf] += __popc(stored & below);
            count[part / kHalf] += __popc(stored);
          }
          const unsigned low = present & kHalfBits;
          const unsigned high = present & kHalfBits << kHalf;
          if (count[0] + count[1] <= C::kMaxBatch) {
            list(low | high, slots, rank[0] + rank[1], count[0] + count[1], false);
          } else {
            list(low, slots, rank[0], count[0], true);
            list(high, slots, rank[1], count[1], false);
          }
          present >>= C::kParts;
          slots += C::kParts;
        }
        __syncwarp();
        if (lane == 0) ptx::barrier_arrive(&shared.window_empty[windows.stage]);
        windows.advance();
      }
    });
  }
};

/// The warp that copies blocks, closely packed.
template <class C>
__device__ void load_blocks(const Params& p, Shared<C>& shared) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::uint32_t full0 = ptx::kept(ptx::shared_address(shared.full));
  const std::uint32_t empty0 = ptx::kept(ptx::shared_address(shared.empty));
  // Blocks are swizzled as the copy engine would, in units of 512 bytes.
  const std::uint32_t block0 = ptx::kept(ptx::shared_address(shared.ring) + p.stages * kStageBytes +
                                         ptx::swizzled<C::kBlockRowBytes>(0, lane * 16));
  const auto* values = static_cast<const unsigned char*>(p.values) + lane * 16;
  int number = 0;
  int known = 0;  // the first batch that may not have been given back
  for_each_tile<C>(p, [&](int, int) {
    for (int chunk = 0; chunk < p.chunks;) {
      const int at = number % kBatches;
      const unsigned parity = number / kBatches & 1;
      ptx::barrier_wait(&shared.listed[at], parity);
      const Batch batch = shared.batches[number % kListed];
      ptx::barrier_wait(empty0 + at * 8, parity ^ 1);
      // Batches are given back in order, and no barrier may be asked for a phase before the
      // last: so only those whose place cannot have been filled again are waited for.
      known = max(known, max(number - kBatches + 1, 0));
      while (batch.before + batch.count - shared.batches[known % kListed].before > p.blocks) {
        ptx::barrier_wait(empty0 + known % kBatches * 8, known / kBatches & 1);
        ++known;
      }
      int to = batch.place;
#pragma unroll 4
      for (int i = 0; i < batch.count; ++i) {
        const unsigned char* from = values + std::int64_t{shared.slots[at][i]} * C::kBlockBytes;
#pragma unroll
        for (int unit = 0; unit < C::kBlockBytes; unit += 512) {
          ptx::copy_async(block0 + to * C::kBlockBytes + unit, from + unit);
        }
        to = to + 1 == p.blocks ? 0 : to + 1;
      }
      ptx::copy_arrive(full0 + at * 8);
      __syncwarp();  // the slots have been read
      if (lane == 0) {
        ptx::barrier_arrive(full0 + at * 8);
        ptx::barrier_arrive(&shared.listed_empty[at]);
      }
      ++number;
      if (!batch.more) ++chunk;
    }
  });
}

}  // namespace block_sparse::cuda::sm90::lists
