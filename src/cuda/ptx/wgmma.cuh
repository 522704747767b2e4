// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/common/element.cuh"

/// Warpgroup matrix products of Hopper: D (64 x N, f32 registers) += A (64 x 16)
/// B (16 x N) for 16-bit A and B, B in shared memory, A there or in registers.
/// Thread t of the warpgroup holds D[16 (t / 32) + (t % 32) / 4 + 8 h]
/// [8 j + 2 (t % 4) + i] in d[4 j + 2 h + i].
namespace block_sparse::cuda::ptx {

/// Keeps the compiler from moving accesses to the accumulators across.
template <int N>
__device__ __forceinline__ void wgmma_fence(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
__device__ __forceinline__ void wgmma_begin() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
/// Lets what was written to shared memory other than by the copy engine, and can be
/// seen by this thread, be read by its wgmmas.
__device__ __forceinline__ void wgmma_see_shared() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int Pending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}

/// Describes an operand in shared memory whose rows are `RowBytes` = 32, 64 or
/// 128 bytes long and swizzled over that length. K contiguous: rows are M or N,
/// the groups of 8 rows `8 RowBytes` apart. M or N contiguous: rows are K, and
/// `next` is the distance in bytes to the tile of the following M or N.
template <int RowBytes>
__device__ __forceinline__ std::uint64_t operand(std::uint32_t address, std::uint32_t next = 16) {
  constexpr std::uint64_t kSwizzle = RowBytes == 128 ? 1 : RowBytes == 64 ? 2 : 3;
  return std::uint64_t((address & 0x3ffff) >> 4) | std::uint64_t(next >> 4) << 16 |
         std::uint64_t(RowBytes * 8 >> 4) << 32 | kSwizzle << 62;
}

/// The same operand `bytes` further on, a multiple of 16: one addition of 32 bits.
__device__ __forceinline__ std::uint64_t advanced(std::uint64_t operand, std::uint32_t bytes) {
  const std::uint32_t low = static_cast<std::uint32_t>(operand) + (bytes >> 4);
  return (operand >> 32) << 32 | low;
}

// The operands of D as asm statements want them: names, and the registers behind them.
#define BLOCK_SPARSE_NAMES_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define BLOCK_SPARSE_NAMES_16 BLOCK_SPARSE_NAMES_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define BLOCK_SPARSE_NAMES_32 \
  BLOCK_SPARSE_NAMES_16       \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define BLOCK_SPARSE_NAMES_64                                                        \
  BLOCK_SPARSE_NAMES_32                                                              \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define BLOCK_SPARSE_NAMES_96                                                        \
  BLOCK_SPARSE_NAMES_64                                                              \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
  ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define BLOCK_SPARSE_NAMES_128                                                                   \
  BLOCK_SPARSE_NAMES_64                                                                          \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"             \
  ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"             \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
  ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, " \
  "%127"
#define BLOCK_SPARSE_SUMS_8(i)                                                                \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define BLOCK_SPARSE_SUMS_16(i) BLOCK_SPARSE_SUMS_8(i), BLOCK_SPARSE_SUMS_8(i + 8)
#define BLOCK_SPARSE_SUMS_32(i) BLOCK_SPARSE_SUMS_16(i), BLOCK_SPARSE_SUMS_16(i + 16)
#define BLOCK_SPARSE_SUMS_64(i) BLOCK_SPARSE_SUMS_32(i), BLOCK_SPARSE_SUMS_32(i + 32)
#define BLOCK_SPARSE_SUMS_96(i) BLOCK_SPARSE_SUMS_64(i), BLOCK_SPARSE_SUMS_32(i + 64)
#define BLOCK_SPARSE_SUMS_128(i) BLOCK_SPARSE_SUMS_64(i), BLOCK_SPARSE_SUMS_64(i + 64)

// One product of `N` columns with `Sums` accumulators; `rest` names the other operands.
#define BLOCK_SPARSE_WGMMA(N, Sums, type, rest, ...)                           \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type "." type \
               " {" BLOCK_SPARSE_NAMES_##Sums "}, " rest                       \
               : BLOCK_SPARSE_SUMS_##Sums(0)                                   \
               : __VA_ARGS__)
#define BLOCK_SPARSE_WGMMA_SHARED(N, Sums, rest)                                       \
  template <bool MContiguous, bool NContiguous>                                        \
  static __device__ __forceinline__ void shared(float (&d)[Sums], std::uint64_t a,     \
                                                std::uint64_t b) {                     \
    if constexpr (std::is_same_v<T, bf16>) {                                           \
      BLOCK_SPARSE_WGMMA(N, Sums, "bf16", rest, "l"(a), "l"(b), "n"(int(MContiguous)), \
                         "n"(int(NContiguous)));                                       \
    } else {                                                                           \
      BLOCK_SPARSE_WGMMA(N, Sums, "f16", rest, "l"(a), "l"(b), "n"(int(MContiguous)),  \
                         "n"(int(NContiguous)));                                       \
    }                                                                                  \
  }
#define BLOCK_SPARSE_WGMMA_REGISTERS(N, Sums, rest)                                                \
  template <bool NContiguous>                                                                      \
  static __device__ __forceinline__ void registers(float (&d)[Sums], const std::uint32_t (&a)[4],  \
                                                   std::uint64_t b) {                              \
    if constexpr (std::is_same_v<T, bf16>) {                                                       \
      BLOCK_SPARSE_WGMMA(N, Sums, "bf16", rest, "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]),        \
                         "l"(b), "n"(int(NContiguous)));                                           \
    } else {                                                                                       \
      BLOCK_SPARSE_WGMMA(N, Sums, "f16", rest, "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), \
                         "n"(int(NContiguous)));                                                   \
    }                                                                                              \
  }

/// wgmma for N columns of bf16 or f16; the last two template arguments say whether M (of A)
/// or N (of B) is contiguous in shared memory instead of K.
template <class T, int N>
struct Wgmma;

template <class T>
struct Wgmma<T, 16> {
  BLOCK_SPARSE_WGMMA_SHARED(16, 8, "%8, %9, 1, 1, 1, %10, %11;")
};
template <class T>
struct Wgmma<T, 32> {
  BLOCK_SPARSE_WGMMA_SHARED(32, 16, "%16, %17, 1, 1, 1, %18, %19;")
};
template <class T>
struct Wgmma<T, 64> {
  BLOCK_SPARSE_WGMMA_SHARED(64, 32, "%32, %33, 1, 1, 1, %34, %35;")
};
template <class T>
struct Wgmma<T, 128> {
  BLOCK_SPARSE_WGMMA_SHARED(128, 64, "%64, %65, 1, 1, 1, %66, %67;")
  BLOCK_SPARSE_WGMMA_REGISTERS(128, 64, "{%64, %65, %66, %67}, %68, 1, 1, 1, %69;")
};
template <class T>
struct Wgmma<T, 192> {
  BLOCK_SPARSE_WGMMA_SHARED(192, 96, "%96, %97, 1, 1, 1, %98, %99;")
  BLOCK_SPARSE_WGMMA_REGISTERS(192, 96, "{%96, %97, %98, %99}, %100, 1, 1, 1, %101;")
};
template <class T>
struct Wgmma<T, 256> {
  BLOCK_SPARSE_WGMMA_SHARED(256, 128, "%128, %129, 1, 1, 1, %130, %131;")
  BLOCK_SPARSE_WGMMA_REGISTERS(256, 128, "{%128, %129, %130, %131}, %132, 1, 1, 1, %133;")
};

#undef BLOCK_SPARSE_WGMMA_REGISTERS
#undef BLOCK_SPARSE_WGMMA_SHARED
#undef BLOCK_SPARSE_WGMMA
#undef BLOCK_SPARSE_SUMS_128
#undef BLOCK_SPARSE_SUMS_64
#undef BLOCK_SPARSE_SUMS_32
#undef BLOCK_SPARSE_SUMS_16
#undef BLOCK_SPARSE_SUMS_8
#undef BLOCK_SPARSE_NAMES_128
#undef BLOCK_SPARSE_NAMES_96
#undef BLOCK_SPARSE_NAMES_64
#undef BLOCK_SPARSE_NAMES_32
#undef BLOCK_SPARSE_NAMES_16
#undef BLOCK_SPARSE_NAMES_8

}  // namespace block_sparse::cuda::ptx
