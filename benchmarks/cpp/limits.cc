// SPDX-License-Identifier: Apache-2.0
//
// What the benchmarks in Python (bench/limits.py) ask about the processor; 0 where it cannot be
// said.
#include <cstdint>

#include "peaks.h"

extern "C" {

__attribute__((visibility("default"))) double block_sparse_fma_peak(int threads) {
  return peak_of_threads(fma_peak, threads);
}

__attribute__((visibility("default"))) double block_sparse_bf16_peak(int threads) {
  return peak_of_threads(bf16_peak, threads);
}

__attribute__((visibility("default"))) double block_sparse_read_bandwidth(std::int64_t bytes,
                                                                          int threads) {
  return read_bandwidth(bytes, threads);
}
}
