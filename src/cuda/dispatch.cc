// SPDX-License-Identifier: Apache-2.0
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <span>

#include "block_sparse/cuda.h"
#include "cuda/common/device.h"
#include "cuda/generic/generic.h"
#include "cuda/sm80/decode/decode.h"
#include "cuda/sm80/gradient/gradient.h"
#include "cuda/sm80/sddmm/sddmm.h"
#include "cuda/sm80/spmm/spmm.h"
#include "cuda/sm90/cells/cells.h"
#include "cuda/sm90/decode/decode.h"
#include "cuda/sm90/lists/lists.h"
#include "cuda/sm90/sddmm/sddmm.h"
#include "cuda/sm90/spmm/spmm.h"
#include "cuda/sm90/wide/wide.h"

/// Which kernel runs a call: of a product's list the first that does not
/// refuse.
namespace block_sparse::cuda {
namespace {

using generic::SpmmProblem;

template <class Problem>
struct Kernel {
  const char* name;
  /// Why the kernel cannot run the problem on this device, or null.
  const char* (*refusal)(const Problem&, const Device&);
  Status (*run)(const Problem&, Stream);
  /// Bytes of workspace with which the kernel is fastest; null: none.
  std::size_t (*workspace)(const Problem&);
  /// Why a kernel further down the list is preferred to this one, unless it is asked
  /// for by name, or null.
  const char* (*slower)(const Problem&) = nullptr;
  /// How the kernel would cut up a problem, for the log; null: always alike.
  std::string (*describe)(const Problem&) = nullptr;
};

const char* needs_hopper(const Device& device) {
  return device.major == 9 ? nullptr : "the device is not a Hopper GPU";
}

const char* needs_ampere(const Device& device) {
  return device.major >= 8 ? nullptr : "the device is older than Ampere";
}

/// Measured on an H100 with 8192 tokens. Blocks of 32 and 16: 245 and 620 us instead of 280 and
/// 807 at density .05 (forward, 4096 -> 14336), 488 instead of 506 at .1 in the input gradient
/// with blocks of 32, but 935 and 1711 instead of 786 and 1107 at .25.
const char* slower_than_spmm(const SpmmProblem& p) {
  const bool input_gradient = p.stride_m == 1;
  const double most = input_gradient && p.height == 32 ? 0.15 : 0.075;
  return p.height < 64 && generic::density_bound(p) >= most
             ? "sm90_spmm is faster for more of such small blocks"
             : nullptr;
}

/// Its results were compared with cuBLAS's on an H100, but its tests have not run there.
const char* lists_not_proved(const SpmmProblem&) { return "not proved on a GPU yet"; }

/// Measured on an H100: with one token 25 us of 4096 -> 14336 features at density .5 where
/// sm80_decode takes 23, with 16 of 4096 -> 4096 12 where it takes 10.
const char* slower_than_mma(const SpmmProblem& p) {
  const bool small = p.in * p.out < (std::int64_t{1} << 25);
  return p.tokens <= 8 || (p.tokens <= 32 && small)
             ? "sm80_decode is faster for so few tokens or features"
             : nullptr;
}

/// Measured on an H100 between 4096 and 14336 features: TF32 takes 47 us of one token where f32
/// takes 41, and of 16 tokens 50 us where f32 takes 96 to 118.
const char* slower_than_f32(const SpmmProblem& p) {
  return p.dtype == DataType::f32 && p.tokens <= 8
             ? "sm80_decode_f32 is faster for so few tokens of float32"
             : nullptr;
}

constexpr Kernel<SpmmProblem> kSpmm[] = {
    {"sm90_decode",
     [](const SpmmProblem& p, const Device& d) {
       const char* why = needs_hopper(d);
       return why != nullptr ? why : sm90::decode::refusal(p);
     },
     sm90::decode::run, nullptr, slower_than_mma},
    {"sm80_decode",
     [](const SpmmProblem& p, const Device& d) {
       const char* why = needs_ampere(d);
       return why != nullptr ? why : sm80::decode::refusal(p);
     },
     sm80::decode::run, nullptr, slower_than_f32},
    {"sm80_decode_f32",
     [](const SpmmProblem& p, const Device& d) {
       const char* why = needs_ampere(d);
       return why != nullptr ? why : sm80::decode::refusal_f32(p);
     },
     sm80::decode::run_f32, nullptr},
    {"sm90_lists",
     [](const SpmmProblem& p, const Device& d) {
       const char* why = needs_hopper(d);
       return why != nullptr ? why : sm90::lists::refusal(p);
     },
     sm90::lists::run, nullptr, lists_not_proved},
    {"sm90_wide",
     [](const SpmmProblem& p, const Device& d) {
       const char* why = needs_hopper(d);
       return why != nullptr ? why : sm90::wide::refusal(p);
     },
     sm90::wide::run, nullptr, slower_than_spmm},
    {"sm90_spmm",
     [](const SpmmProblem& p, const Device& d) {
       const char* why = needs_hopper(d);
       return why != nullptr ? why : sm90::spmm::refusal(p);
     },
     sm90::spmm::run, nullptr},
    {"sm80_spmm",
     [](const SpmmProblem& p, const Device& d) {
       const char* why = needs_ampere(d);
       return why != nullptr ? why : sm80::spmm::refusal(p);
     },
     sm80::spmm::run, nullptr, nullptr,
     [](const SpmmProblem& p) { return sm80::spmm::to_string(sm80::spmm::choose(p)); }},
    {"generic_spmm", [](const SpmmProblem&, const Device&) -> const char* { return nullptr; },
     generic::spmm, nullptr},
};

/// Square blocks of 16, 32, 64 and 128, from 512 to 8192 tokens, were measured on an H100:
/// from 2048 tokens on it is faster, from 1024 on where low blocks have many features.
const char* slower_than_others(const WeightGradientArgs& a) {
  const PatternView& w = a.pattern;
  const std::int64_t side = w.block_height;
  const bool low = side <= 32 && w.rows * w.cols >= 4096 * 4096;
  const bool faster = a.tokens >= 2048 || (low && a.tokens >= 1024);
  const bool measured =
      side == w.block_width && std::has_single_bit<std::uint64_t>(side) && side <= 128;
  return faster && measured ? nullptr : "not measured to be faster for such a problem";
}

constexpr Kernel<WeightGradientArgs> kWeightGradient[] = {
    {"sm90_cells",
     [](const WeightGradientArgs& a, const Device& d) {
       const char* why = needs_hopper(d);
       return why != nullptr ? why : sm90::cells::refusal(a);
     },
     sm90::cells::run, sm90::cells::workspace, slower_than_others},
    {"sm90_sddmm",
     [](const WeightGradientArgs& a, const Device& d) {
       const char* why = needs_hopper(d);
       return why != nullptr ? why : sm90::sddmm::refusal(a);
     },
     sm90::sddmm::run, sm90::sddmm::workspace},
    {"sm80_sddmm",
     [](const WeightGradientArgs& a, const Device& d) {
       const char* why = needs_ampere(d);
       return why != nullptr ? why : sm80::sddmm::refusal(a);
     },
     sm80::sddmm::run, sm80::sddmm::workspace},
    {"sm80_gradient",
     [](const WeightGradientArgs& a, const Device& d) {
       const char* why = needs_ampere(d);
       return why != nullptr ? why : sm80::gradient::refusal(a);
     },
     sm80::gradient::run, sm80::gradient::workspace},
    {"generic_sddmm",
     [](const WeightGradientArgs&, const Device&) -> const char* { return nullptr; },
     generic::weight_gradient, nullptr},
};

constexpr Kernel<BlockNormsArgs> kBlockNorms[] = {
    {"sm80_norms",
     [](const BlockNormsArgs& a, const Device& d) {
       const char* why = needs_ampere(d);
       return why != nullptr ? why : sm80::gradient::refusal(a);
     },
     sm80::gradient::run, nullptr},
    {"generic_norms", [](const BlockNormsArgs&, const Device&) -> const char* { return nullptr; },
     generic::block_norms, nullptr},
};

bool verbose() {
  static const bool on = [] {
    const char* value = std::getenv("BLOCK_SPARSE_VERBOSE");
    return value != nullptr && std::strstr(value, "dispatch") != nullptr;
  }();
  return on;
}

/// The first kernel of the list that takes the problem; `*why` is set if none.
template <class Problem>
const Kernel<Problem>* choose(std::span<const Kernel<Problem>> kernels, const Problem& problem,
                              Status* why) {
  Device device;
  if (*why = current_device(&device); !why->ok()) return nullptr;
  const char* forced = std::getenv("BLOCK_SPARSE_FORCE");
  for (const Kernel<Problem>& kernel : kernels) {
    // A name of another product's or backend's kernel does not concern this list.
    if (forced != nullptr && std::strcmp(forced, kernel.name) == 0) {
      const char* refusal = kernel.refusal(problem, device);
      if (refusal == nullptr) return &kernel;
      *why = Status::unsupported(std::string("BLOCK_SPARSE_FORCE=") + forced +
                                 " cannot run this call: " + refusal + ".");
      return nullptr;
    }
  }
  for (const Kernel<Problem>& kernel : kernels) {
    const char* refusal = kernel.refusal(problem, device);
    if (refusal == nullptr && kernel.slower != nullptr) refusal = kernel.slower(problem);
    if (verbose()) {
      const std::string how = refusal == nullptr && kernel.describe != nullptr
                                  ? " (" + kernel.describe(problem) + ")"
                                  : std::string();
      std::fprintf(stderr, "block_sparse: %s: %s%s\n", kernel.name,
                   refusal == nullptr ? "chosen" : refusal, how.c_str());
    }
    if (refusal == nullptr) return &kernel;
  }
  *why = Status::unsupported("No CUDA kernel takes this call.");
  return nullptr;
}

template <class Problem>
Status dispatch(std::span<const Kernel<Problem>> kernels, const Problem& problem, Stream stream) {
  Status why;
  const Kernel<Problem>* kernel = choose(kernels, problem, &why);
  return kernel == nullptr ? why : kernel->run(problem, stream);
}

template <class Problem>
std::string name_of_choice(std::span<const Kernel<Problem>> kernels, const Problem& problem) {
  Status why;
  const Kernel<Problem>* kernel = choose(kernels, problem, &why);
  return kernel == nullptr ? why.message() : kernel->name;
}

constexpr std::span<const Kernel<SpmmProblem>> spmm_kernels{kSpmm};
constexpr std::span<const Kernel<WeightGradientArgs>> weight_gradient_kernels{kWeightGradient};
constexpr std::span<const Kernel<BlockNormsArgs>> block_norms_kernels{kBlockNorms};

Status check_stride(const char* name, std::int64_t stride, std::int64_t features) {
  if (stride >= features) return {};
  return Status::invalid_argument(std::string(name) + " is " + std::to_string(stride) +
                                  ", expected at least the " + std::to_string(features) +
                                  " features of a row.");
}

Status check_extents(const PatternView& w, std::int64_t tokens) {
  if (tokens < 0 || w.rows < 0 || w.cols < 0 || w.block_height < 1 || w.block_width < 1) {
    return Status::invalid_argument(
        "tokens, rows and cols must be at least 0 and the sides of a "
        "block at least 1.");
  }
  if (w.n_block_rows() > 0x7fffffff || w.n_block_cols() > 0x7fffffff || w.slots > 0x7fffffff) {
    return Status::unsupported("The pattern has more than 2^31 - 1 block rows, columns or slots.");
  }
  return {};
}

}  // namespace

Status forward(const ForwardArgs& a, Stream stream) {
  Status s = check_extents(a.pattern, a.tokens);
  if (s.ok()) s = check_stride("ldx", a.ldx, a.tokens > 1 ? a.pattern.cols : 0);
  if (s.ok()) s = check_stride("ldy", a.ldy, a.tokens > 1 ? a.pattern.rows : 0);
  return s.ok() ? dispatch(spmm_kernels, generic::problem_of(a), stream) : s;
}

Status input_gradient(const InputGradientArgs& a, Stream stream) {
  Status s = check_extents(a.pattern, a.tokens);
  if (s.ok()) s = check_stride("lddy", a.lddy, a.tokens > 1 ? a.pattern.rows : 0);
  if (s.ok()) s = check_stride("lddx", a.lddx, a.tokens > 1 ? a.pattern.cols : 0);
  if (s.ok() && a.pattern.ccol_indices == nullptr) {
    s = Status::invalid_argument("input_gradient needs the transposed pattern, got none.");
  }
  return s.ok() ? dispatch(spmm_kernels, generic::problem_of(a), stream) : s;
}

Status weight_gradient(const WeightGradientArgs& a, Stream stream) {
  Status s = check_extents(a.pattern, a.tokens);
  if (s.ok() && a.out_dtype != a.dtype && (a.out_dtype != DataType::f32 || size_of(a.dtype) != 2)) {
    static constexpr const char* kNames[] = {"float32", "float64", "bfloat16", "float16"};
    s = Status::invalid_argument(
        std::string("out_dtype is ") + kNames[static_cast<int>(a.out_dtype)] + ", expected " +
        kNames[static_cast<int>(a.dtype)] + " as dy and x, or float32 where they have 16 bits.");
  }
  return s.ok() ? dispatch(weight_gradient_kernels, a, stream) : s;
}

std::size_t weight_gradient_workspace(const WeightGradientArgs& a) {
  // Of the kernel that runs if it is given all it wants.
  WeightGradientArgs with = a;
  with.workspace.bytes = std::numeric_limits<std::size_t>::max();
  Status why;
  const Kernel<WeightGradientArgs>* kernel = choose(weight_gradient_kernels, with, &why);
  return kernel == nullptr || kernel->workspace == nullptr ? 0 : kernel->workspace(a);
}

Status block_norms(const BlockNormsArgs& a, Stream stream) {
  const Status s = check_extents(a.pattern, a.tokens);
  return s.ok() ? dispatch(block_norms_kernels, a, stream) : s;
}

std::string kernel_of(const ForwardArgs& a) {
  return name_of_choice(spmm_kernels, generic::problem_of(a));
}
std::string kernel_of(const InputGradientArgs& a) {
  return name_of_choice(spmm_kernels, generic::problem_of(a));
}
std::string kernel_of(const WeightGradientArgs& a) {
  return name_of_choice(weight_gradient_kernels, a);
}
std::string kernel_of(const BlockNormsArgs& a) { return name_of_choice(block_norms_kernels, a); }

}  // namespace block_sparse::cuda
