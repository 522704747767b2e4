// SPDX-License-Identifier: Apache-2.0
#include "cuda/sm80/spmm/spmm.h"

#include <algorithm>

#include "cuda/sm80/common/layout.h"

namespace block_sparse::cuda::sm80::spmm {

using generic::SpmmProblem;

const char* refusal(const SpmmProblem& p) {
  if (p.dtype == DataType::f64) return "float64";
  if (!is_side(p.height) || !is_side(p.width)) return kSideRefusal;
  if (p.out % p.height != 0 || p.in % p.width != 0) return "features are not whole blocks";
  // Positions along K of a line are counted in 32 bits, and so are CTAs.
  if (p.tokens > 0x7fff0000 || p.in > 0x7fff0000) return "too many tokens or features";
  if ((p.tokens / 64 + 1) * (p.lines.count + std::int64_t{1}) > 0x7fff0000) {
    return "too many tokens";
  }
  const auto unit = static_cast<std::int64_t>(16 / size_of(p.dtype));
  if (!is_aligned(p.x) || !is_aligned(p.values) || !is_aligned(p.y) ||
      !is_aligned(p.preactivation) || (p.tokens > 1 && (p.ldx % unit != 0 || p.ldy % unit != 0))) {
    return "rows are not 16-byte aligned";
  }
  return nullptr;
}

Choice choose(const SpmmProblem& p) {
  if (p.dtype == DataType::f32) {
    return {p.allow_tf32 ? Choice::Math::tf32 : Choice::Math::ffma, 1};
  }
  // Lines 16 high use what is read of x for too few products. Together they pay
  // where they share enough of their columns; measured on an H100, higher blocks are
  // better off alone at any density.
  const bool together = p.height == 16 && density_bound(p) >= 0.15;
  return {Choice::Math::mma16, together ? kLinesTogether : 1};
}

std::string to_string(const Choice& choice) {
  static constexpr const char* kMath[] = {"mma.sync of 16 bits", "mma.sync of TF32", "FFMA"};
  return std::string(kMath[static_cast<int>(choice.math)]) + ", " + std::to_string(choice.lines) +
         (choice.lines == 1 ? " line" : " lines") + " a CTA";
}

Status run(const SpmmProblem& p, Stream stream) {
  if (p.tokens == 0 || p.out == 0) return {};
  const Choice choice = choose(p);
  switch (choice.math) {
    case Choice::Math::tf32:
      return run_tf32(p, choice, stream);
    case Choice::Math::ffma:
      return run_ffma(p, choice, stream);
    default:
      return p.dtype == DataType::bf16 ? run_bf16(p, choice, stream) : run_f16(p, choice, stream);
  }
}

}  // namespace block_sparse::cuda::sm80::spmm
