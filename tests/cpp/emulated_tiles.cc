// SPDX-License-Identifier: Apache-2.0
#include "emulated_tiles.h"

#include <atomic>
#include <cstdint>

#include "cpu/sddmm/amx.h"
#include "cpu/spmm/amx.h"

// Compiled with the flags of the kernels, so nothing here has external linkage but what the header
// names.
namespace block_sparse::test {
namespace {

std::atomic<int> refused{0};

void expect(bool condition) {
  if (!condition) ++refused;
}

struct Registers {
  cpu::TileConfig config;
  std::uint8_t data[8][16][64];
};
thread_local Registers of_thread;

struct EmulatedTiles {
  static void configure(const cpu::TileConfig& config) {
    expect(config.palette == 1 && config.start_row == 0);
    for (int i = 0; i < 16; ++i) {
      expect(config.rows[i] <= (i < 8 ? 16 : 0));
      expect(config.row_bytes[i] <= (i < 8 ? 64 : 0));
      expect((config.rows[i] == 0) == (config.row_bytes[i] == 0));
    }
    of_thread.config = config;
    __builtin_memset(of_thread.data, 0, sizeof of_thread.data);
  }
  static void release() { of_thread.config = cpu::TileConfig(); }

  template <int tile>
  static void load(const float* from, std::int64_t stride) {
    expect(rows(tile) > 0);
    __builtin_memset(of_thread.data[tile], 0, sizeof of_thread.data[tile]);
    for (int r = 0; r < rows(tile); ++r) {
      __builtin_memcpy(of_thread.data[tile][r], reinterpret_cast<const char*>(from) + r * stride,
                       of_thread.config.row_bytes[tile]);
    }
  }
  template <int tile>
  static void store(float* to, std::int64_t stride) {
    expect(rows(tile) > 0);
    for (int r = 0; r < rows(tile); ++r) {
      __builtin_memcpy(reinterpret_cast<char*>(to) + r * stride, of_thread.data[tile][r],
                       of_thread.config.row_bytes[tile]);
    }
  }
  template <int c, int a, int b>
  static void multiply() {
    expect(rows(c) > 0 && rows(a) == rows(c));
    expect(words(b) == words(c) && words(a) == rows(b));
    for (int m = 0; m < rows(c); ++m) {
      for (int n = 0; n < words(c); ++n) {
        // Both elements of the pairs are summed by themselves, then added to what was there.
        float even = 0;
        float odd = 0;
        for (int k = 0; k < rows(b); ++k) {
          even += element(a, m, 2 * k) * element(b, k, 2 * n);
          odd += element(a, m, 2 * k + 1) * element(b, k, 2 * n + 1);
        }
        float sum;
        __builtin_memcpy(&sum, of_thread.data[c][m] + 4 * n, sizeof sum);
        sum += even + odd;
        __builtin_memcpy(of_thread.data[c][m] + 4 * n, &sum, sizeof sum);
      }
    }
  }
  static void prefetch(const float*) {}

 private:
  static int rows(int tile) { return of_thread.config.rows[tile]; }
  static int words(int tile) { return of_thread.config.row_bytes[tile] / 4; }
  static float element(int tile, int row, int i) {
    std::uint16_t upper;
    __builtin_memcpy(&upper, of_thread.data[tile][row] + 2 * i, sizeof upper);
    const std::uint32_t bits = std::uint32_t{upper} << 16;
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
  }
};

}  // namespace

const cpu::spmm::PairsKernels emulated_spmm = cpu::spmm::amx_kernels_on<EmulatedTiles>;
const cpu::sddmm::Kernels emulated_sddmm = cpu::sddmm::amx_kernels_on<EmulatedTiles>;

int refused_tile_instructions() { return refused; }
bool tiles_are_released() { return of_thread.config.palette == 0; }

}  // namespace block_sparse::test
