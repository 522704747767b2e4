// SPDX-License-Identifier: Apache-2.0
#include "block_sparse/cpu_features.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace block_sparse::cpu {
namespace {

#if defined(__x86_64__)

struct CpuidLeaf {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

CpuidLeaf cpuid(unsigned leaf, unsigned subleaf) {
  CpuidLeaf out;
  if (!__get_cpuid_count(leaf, subleaf, &out.eax, &out.ebx, &out.ecx, &out.edx)) return {};
  return out;
}

bool all_set(std::uint64_t word, std::uint64_t bits) { return (word & bits) == bits; }

constexpr std::uint64_t bit(int n) { return std::uint64_t{1} << n; }

/// The register state that the operating system saves (XCR0).
std::uint64_t saved_state() {
  unsigned low = 0;
  unsigned high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (std::uint64_t{high} << 32) | low;
}

/// Linux hands the 8 KiB of tile data out only to a process that asked.
bool request_amx_permission() {
#if defined(__linux__)
  constexpr long arch_req_xcomp_perm = 0x1023;
  constexpr long xfeature_xtiledata = 18;
  return syscall(SYS_arch_prctl, arch_req_xcomp_perm, xfeature_xtiledata) == 0;
#else
  return false;
#endif
}

Features detect() {
  // State components of XCR0: SSE and AVX; opmask and both halves of zmm; tiles.
  constexpr std::uint64_t ymm_state = bit(1) | bit(2);
  constexpr std::uint64_t zmm_state = ymm_state | bit(5) | bit(6) | bit(7);
  constexpr std::uint64_t tile_state = bit(17) | bit(18);

  const CpuidLeaf basic = cpuid(1, 0);
  constexpr std::uint64_t fma = bit(12), osxsave = bit(27), avx = bit(28), f16c = bit(29);
  if (!all_set(basic.ecx, fma | osxsave | avx | f16c)) return 0;
  const std::uint64_t saved = saved_state();
  const CpuidLeaf extended = cpuid(7, 0);

  constexpr std::uint64_t avx2 = bit(5);
  if (!all_set(saved, ymm_state) || !all_set(extended.ebx, avx2)) return 0;
  Features features = avx2_fma;

  constexpr std::uint64_t f = bit(16), dq = bit(17), bw = bit(30), vl = bit(31);
  if (!all_set(saved, zmm_state) || !all_set(extended.ebx, f | dq | bw | vl)) return features;
  features |= avx512;

  constexpr std::uint64_t amx_bf16_bit = bit(22), amx_tile_bit = bit(24);  // leaf 7, edx
  const bool tiles = all_set(extended.edx, amx_bf16_bit | amx_tile_bit);
  // Processors with tiles take two cycles for a vdpbf16ps and half of one for an FMA (measured,
  // Xeon family 6 model 207), so that f32 is twice as fast; Zen 4 takes one for either.
  constexpr std::uint64_t bf16 = bit(5);  // leaf 7, subleaf 1, eax
  if (!all_set(cpuid(7, 1).eax, bf16)) return features;
  if (!tiles) return features | avx512_bf16;

  if (all_set(saved, tile_state) && request_amx_permission()) features |= amx_bf16;
  return features;
}

#else

Features detect() { return 0; }

#endif

}  // namespace

Features detected_features() {
  static const Features features = detect();
  return features;
}

std::string to_string(Features features) {
  constexpr struct {
    Feature feature;
    const char* name;
  } names[] = {{avx2_fma, "avx2_fma"},
               {avx512, "avx512"},
               {avx512_bf16, "avx512_bf16"},
               {amx_bf16, "amx_bf16"}};
  std::string out;
  for (const auto& entry : names) {
    if ((features & entry.feature) == 0) continue;
    if (!out.empty()) out += ' ';
    out += entry.name;
  }
  return out.empty() ? "baseline" : out;
}

}  // namespace block_sparse::cpu
