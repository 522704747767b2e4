// SPDX-License-Identifier: Apache-2.0
#include "cuda/sm90/lists/lists.h"

#include "cuda/common/device.h"

namespace block_sparse::cuda::sm90::lists {

using generic::SpmmProblem;

const char* refusal(const SpmmProblem& p) {
  if (p.dtype != DataType::bf16 && p.dtype != DataType::f16) return "not a 16-bit type";
  if (p.height != p.width || (p.height != 16 && p.height != 32)) {
    return "the blocks are not 16 x 16 or 32 x 32";
  }
  if (p.out % p.height != 0 || p.in % p.width != 0) return "features are not whole blocks";
  if (p.in < 1 || p.slots < 1) return "there is nothing to multiply";
  // A tile is 128 tokens of at least one output.
  if (p.tokens > 0x7fff0000 || (p.tokens / 128 + 1) * (p.out / 384 + 1) > 0x7fff0000) {
    return "too many tokens";
  }
  for (const void* data :
       {p.x, p.values, static_cast<const void*>(p.y), static_cast<const void*>(p.preactivation)}) {
    if (const char* why = tensor_map_refusal(data, 0)) return why;
  }
  for (const std::int64_t stride : {p.ldx, p.ldy}) {
    if (const char* why = tensor_map_refusal(nullptr, stride)) return why;
  }
  return nullptr;
}

// Measured between 4096 and 14336 features, 8192 tokens: the fewer blocks, the more of
// what is under way should be x.
int stages_of(const SpmmProblem& p) {
  const double density = generic::density_bound(p);
  if (density >= 0.2) return 3;
  return p.height == 16 || density >= 0.075 ? 4 : 5;
}

}  // namespace block_sparse::cuda::sm90::lists
