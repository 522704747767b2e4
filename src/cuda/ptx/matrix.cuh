// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

/// 8 x 8 matrices of 16-bit elements between shared memory and registers. Lane
/// i gives the address of row i % 8 of matrix i / 8; afterwards lane l holds
/// elements (l / 4, 2 (l % 4)) and the next of each matrix.
namespace block_sparse::cuda::ptx {

__device__ __forceinline__ void load_matrix_x4(std::uint32_t (&r)[4], std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void load_matrix_x4_transposed(std::uint32_t (&r)[4],
                                                          std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void store_matrix_x4_transposed(std::uint32_t address, std::uint32_t a,
                                                           std::uint32_t b, std::uint32_t c,
                                                           std::uint32_t d) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
      "r"(a), "r"(b), "r"(c), "r"(d)
      : "memory");
}

/// The address of byte (row, byte) in a tile whose rows are `RowBytes` = 32, 64
/// or 128 long and swizzled as the copy engine does: 16-byte units are XORed
/// with bits of the 128-byte line they lie in.
template <int RowBytes>
__device__ __forceinline__ std::uint32_t swizzled(std::uint32_t row, std::uint32_t byte) {
  const std::uint32_t offset = row * RowBytes + byte;
  return offset ^ ((offset >> 3) & (RowBytes - 16));
}

}  // namespace block_sparse::cuda::ptx
