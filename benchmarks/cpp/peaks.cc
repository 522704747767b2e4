// SPDX-License-Identifier: Apache-2.0
#include "peaks.h"

#include <algorithm>
#include <array>
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

namespace {

/// The sum of what `rate` says on so many threads that start together.
template <class Rate>
double sum_of_threads(const Rate& rate_of_one, int threads) {
  std::vector<double> rates(static_cast<std::size_t>(threads));
  std::barrier start(threads);
  std::vector<std::thread> running;
  for (double& rate : rates) {
    running.emplace_back([&] { rate = rate_of_one([&] { start.arrive_and_wait(); }); });
  }
  double sum = 0;
  for (std::size_t i = 0; i < rates.size(); ++i) {
    running[i].join();
    sum += rates[i];
  }
  return sum;
}

}  // namespace

double peak_of_threads(double (*peak)(), int threads) {
  return sum_of_threads(
      [&](const auto& wait) {
        wait();
        return peak();
      },
      threads);
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

/// Loads four lines of 64 bytes at a time and does nothing with them.
__attribute__((target("avx2"))) void read_avx2(const float* from, std::int64_t lines) {
  for (std::int64_t i = 0; i < lines; i += 4, from += 64) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      asm volatile("" ::"x"(_mm256_load_ps(from + 8 * j)));
    }
  }
}

__attribute__((target("avx512f"))) void read_avx512(const float* from, std::int64_t lines) {
  for (std::int64_t i = 0; i < lines; i += 4, from += 64) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      asm volatile("" ::"v"(_mm512_load_ps(from + 16 * j)));
    }
  }
}

/// Flops per second of the median of some runs: of the best, threads that share a core would each
/// report the moment when the other was done.
double rate(float (*run)(float), double flops) {
  volatile float factor = 0.5f;
  volatile float result = 0;
  std::array<double, 21> seconds{};
  for (double& run_seconds : seconds) {
    const double start = thread_seconds();
    result = run(factor);
    run_seconds = thread_seconds() - start;
  }
  static_cast<void>(result);
  std::nth_element(seconds.begin(), seconds.begin() + seconds.size() / 2, seconds.end());
  return flops / seconds[seconds.size() / 2];
}

}  // namespace

double fma_peak() {
  using namespace block_sparse::cpu;
  const Features features = detected_features();
  if ((features & avx512) != 0) return rate(run_avx512, 2.0 * 16 * chains * steps);
  if ((features & avx2_fma) != 0) return rate(run_avx2, 2.0 * 8 * chains * steps);
  return 0;
}

double read_bandwidth(std::int64_t bytes, int threads) {
  using namespace block_sparse::cpu;
  const Features features = detected_features();
  if ((features & avx2_fma) == 0) return 0;
  const auto read = (features & avx512) != 0 ? read_avx512 : read_avx2;
  const std::int64_t lines = std::max<std::int64_t>(bytes / threads / 256, 1) * 4;
  // What lies in L1 takes less time than to look at the clock.
  const std::int64_t passes = std::max<std::int64_t>((std::int64_t{1} << 14) / lines, 1);
  return sum_of_threads(
      [&](const auto& wait) {
        struct alignas(64) CacheLine {
          float values[16];
        };
        const std::vector<CacheLine> part(static_cast<std::size_t>(lines), CacheLine{{1}});
        read(part[0].values, lines);
        wait();
        double best = 1e9;
        for (int i = 0; i < 8; ++i) {
          const double start = wall_seconds();
          for (std::int64_t pass = 0; pass < passes; ++pass) read(part[0].values, lines);
          best = std::min(best, wall_seconds() - start);
        }
        return 64.0 * static_cast<double>(lines * passes) / best;
      },
      threads);
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
double read_bandwidth(std::int64_t, int) { return 0; }
#endif
