// SPDX-License-Identifier: Apache-2.0
#include "fma_peak.h"

#include <algorithm>
#include <barrier>
#include <chrono>
#include <ctime>
#include <thread>
#include <vector>

#include "block_sparse/cpu_features.h"
#include "cpu/simd/amx.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

double thread_seconds() {
  std::timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

double wall_seconds() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

double peak_of_threads(double (*peak)(), int threads) {
  std::vector<double> rates(static_cast<std::size_t>(threads));
  std::barrier start(threads);
  std::vector<std::thread> running;
  for (double& rate : rates) {
    running.emplace_back([&] {
      start.arrive_and_wait();
      rate = peak();
    });
  }
  double sum = 0;
  for (std::size_t i = 0; i < rates.size(); ++i) {
    running[i].join();
    sum += rates[i];
  }
  return sum;
}

#if defined(__x86_64__)
namespace {

// More accumulators than FMA has latency times throughput (4 or 5 cycles, 2 a cycle),
// fewer than there are registers.
constexpr int chains = 12;
constexpr int steps = 100000;

/// Each chain tends to 1: no overflow, no subnormals.
__attribute__((target("avx2,fma"))) float run_avx2(float factor) {
  const __m256 a = _mm256_set1_ps(factor);
  const __m256 b = _mm256_set1_ps(1 - factor);
  __m256 sum[chains];
  for (__m256& chain : sum) chain = b;
  for (int i = 0; i < steps; ++i) {
#pragma GCC unroll 12
    for (__m256& chain : sum) chain = _mm256_fmadd_ps(chain, a, b);
  }
  for (int i = 1; i < chains; ++i) sum[0] = _mm256_add_ps(sum[0], sum[i]);
  return _mm256_cvtss_f32(sum[0]);
}

__attribute__((target("avx512f"))) float run_avx512(float factor) {
  const __m512 a = _mm512_set1_ps(factor);
  const __m512 b = _mm512_set1_ps(1 - factor);
  __m512 sum[chains];
  for (__m512& chain : sum) chain = b;
  for (int i = 0; i < steps; ++i) {
#pragma GCC unroll 12
    for (__m512& chain : sum) chain = _mm512_fmadd_ps(chain, a, b);
  }
  for (int i = 1; i < chains; ++i) sum[0] = _mm512_add_ps(sum[0], sum[i]);
  return _mm512_cvtss_f32(sum[0]);
}

/// All operands 0, whose products take as long as any.
__attribute__((target("avx512f,avx512bf16"))) float run_avx512_bf16(float) {
  __m512 operand = _mm512_setzero_ps();
  asm("" : "+v"(operand));  // unknown to the compiler
  __m512 sum[chains];
  for (__m512& chain : sum) chain = operand;
  for (int i = 0; i < steps; ++i) {
#pragma GCC unroll 12
    for (__m512& chain : sum) chain = _mm512_dpbf16_ps(chain, (__m512bh)operand, (__m512bh)operand);
  }
  for (int i = 1; i < chains; ++i) sum[0] = _mm512_add_ps(sum[0], sum[i]);
  return _mm512_cvtss_f32(sum[0]);
}

/// 2 x 2 tiles of C, as kernels have them.
float run_tiles(float) {
  using Tiles = block_sparse::cpu::AmxBf16;
  block_sparse::cpu::TileConfig config;  // all tiles full; those that were not loaded are zero
  config.palette = 1;
  for (int i = 0; i < 8; ++i) config.rows[i] = 16, config.row_bytes[i] = 64;
  Tiles::configure(config);
  for (int i = 0; i < steps; ++i) {
    Tiles::multiply<0, 4, 6>();
    Tiles::multiply<1, 4, 7>();
    Tiles::multiply<2, 5, 6>();
    Tiles::multiply<3, 5, 7>();
  }
  Tiles::release();
  return 0;
}

/// Flops per second of the best of some runs.
double rate(float (*run)(float), double flops) {
  volatile float factor = 0.5f;
  volatile float result = 0;
  double best = 1e9;
  for (int i = 0; i < 20; ++i) {
    const double start = thread_seconds();
    result = run(factor);
    best = std::min(best, thread_seconds() - start);
  }
  static_cast<void>(result);
  return flops / best;
}

}  // namespace

double fma_peak() {
  using namespace block_sparse::cpu;
  const Features features = detected_features();
  if ((features & avx512) != 0) return rate(run_avx512, 2.0 * 16 * chains * steps);
  if ((features & avx2_fma) != 0) return rate(run_avx2, 2.0 * 8 * chains * steps);
  return 0;
}

double bf16_peak() {
  using namespace block_sparse::cpu;
  const Features features = detected_features();
  if ((features & amx_bf16) != 0) return rate(run_tiles, 2.0 * 16 * 16 * 32 * 4 * steps);
  if ((features & avx512_bf16) != 0) return rate(run_avx512_bf16, 2.0 * 32 * chains * steps);
  return fma_peak();
}
#else
double fma_peak() { return 0; }
double bf16_peak() { return 0; }
#endif
