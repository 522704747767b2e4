// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "block_sparse/cpu_features.h"
#include "block_sparse/products.h"

/// Which kernel runs a product. Args are the arguments of a product; the choice
/// reads its types and extents, never its pointers or its index, so a test can
/// ask what any machine would choose.
namespace block_sparse::cpu {

template <class Args>
struct Kernel {
  const char* name;
  Features needs;
  /// Null if the kernel can run these arguments, else why not.
  const char* (*refuse)(const Args& args);
  Status (*run)(const Args& args, const Executor& executor);
};

/// All kernels of a product, the preferred one first; the last takes anything.
template <class Args>
const std::vector<Kernel<Args>>& kernels();

/// Null if `kernel` can run `args` on a machine with `features`, else why not.
template <class Args>
const char* refusal(const Kernel<Args>& kernel, const Args& args, Features features);

/// The first kernel that does not refuse and need not be forced.
template <class Args>
const Kernel<Args>& choose(const Args& args, Features features);

/// What the environment asks for.
struct Settings {
  bool trace = false;               // BLOCK_SPARSE_VERBOSE=dispatch
  std::vector<std::string> forced;  // BLOCK_SPARSE_FORCE=name[,name...]
  std::string error;                // a sentence if one of the names is no kernel
};
Settings parse_settings(const char* verbose, const char* force);

/// Finds the kernel for valid `args` (a forced one, else the chosen one) and
/// runs it.
template <class Args>
Status dispatch(const Args& args, const Executor& executor, Features features,
                const Settings& settings);

}  // namespace block_sparse::cpu
