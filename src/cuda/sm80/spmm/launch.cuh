// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <bit>

#include "cuda/common/device.h"
#include "cuda/sm80/spmm/kernel.cuh"

namespace block_sparse::cuda::sm80::spmm {

// So many bytes of x stay in L2 (40 MB on an A100, 50 MB on an H100) while the
// weights stream by.
constexpr std::int64_t kBytesInFlight = 16 << 20;
// Rounds of CTAs that are left, so that the last one costs little, and tiles of
// tokens in one of them.
constexpr std::int64_t kRounds = 5;
constexpr std::int64_t kMaxTilesARun = 4;

template <class C>
Status launch(const generic::SpmmProblem& p, Stream stream) {
  constexpr int kBytes = sizeof(Shared<C>);
  const auto function = kernel<C>;
  if (Status s = allow_shared_memory(function, kBytes); !s.ok()) return s;
  Device device;
  if (Status found = current_device(&device); !found.ok()) return found;
  const std::int64_t groups = (p.lines.count + C::kLines - 1) / C::kLines;
  const std::int64_t token_tiles = (p.tokens + C::kTokens - 1) / C::kTokens;
  const std::int64_t at_once = device.multiprocessors * C::kCtas;
  const std::int64_t tiles_a_run =
      std::clamp<std::int64_t>(groups * token_tiles / (kRounds * at_once), 1, kMaxTilesARun);
  const std::int64_t runs = (token_tiles + tiles_a_run - 1) / tiles_a_run;
  const std::int64_t run_bytes =
      tiles_a_run * C::kTokens * p.in * std::int64_t{sizeof(typename C::Element)};
  const Params params{p.lines,
                      std::countr_zero(static_cast<unsigned>(p.width)),
                      static_cast<int>(groups),
                      static_cast<int>(p.in / p.width),
                      static_cast<int>(token_tiles),
                      static_cast<int>(tiles_a_run),
                      static_cast<int>(runs),
                      static_cast<int>(std::clamp<std::int64_t>(
                          kBytesInFlight / std::max<std::int64_t>(run_bytes, 1), 1, 64)),
                      static_cast<int>(p.tokens),
                      p.x,
                      p.ldx,
                      p.values,
                      p.bias,
                      p.activation,
                      p.preactivation,
                      p.y,
                      p.ldy};
  function<<<static_cast<unsigned>(groups * runs), C::kThreads, kBytes, stream>>>(params);
  return to_status(cudaGetLastError(), "launching the portable SpMM kernel");
}

template <class Math, int Height, int Lines>
Status launch_layout(const generic::SpmmProblem& p, Stream stream) {
  return p.stride_m == 1 ? launch<Config<Math, Height, Lines, true>>(p, stream)
                         : launch<Config<Math, Height, Lines, false>>(p, stream);
}

/// Several lines go together only where Math asks for it: it takes fragments.
template <class Math, bool Together, int Height>
Status launch_height(const generic::SpmmProblem& p, const Choice& choice, Stream stream) {
  if constexpr (Together && Height == 16) {
    if (choice.lines > 1) return launch_layout<Math, Height, kLinesTogether>(p, stream);
  }
  return launch_layout<Math, Height, 1>(p, stream);
}

template <class Math, bool Together>
Status launch_math(const generic::SpmmProblem& p, const Choice& choice, Stream stream) {
  switch (p.height) {
    case 16:
      return launch_height<Math, Together, 16>(p, choice, stream);
    case 32:
      return launch_height<Math, Together, 32>(p, choice, stream);
    case 64:
      return launch_height<Math, Together, 64>(p, choice, stream);
    default:
      return launch_height<Math, Together, 128>(p, choice, stream);
  }
}

}  // namespace block_sparse::cuda::sm80::spmm
