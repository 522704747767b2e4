// SPDX-License-Identifier: Apache-2.0
#include "block_sparse/products.h"

#include <cstdlib>
#include <new>

#include "cpu/dispatch.h"
#include "cpu/validate.h"

namespace block_sparse::cpu {
namespace {

/// Read once: the environment of a running process is not safe to look at
/// while another thread changes it.
const Settings& environment() {
  static const Settings settings =
      parse_settings(std::getenv("BLOCK_SPARSE_VERBOSE"), std::getenv("BLOCK_SPARSE_FORCE"));
  return settings;
}

template <class Args>
Status run(const Args& args, const Executor& executor) {
  if (Status status = validate(args); !status.ok()) return status;
  try {
    return dispatch(args, executor, detected_features(), environment());
  } catch (const std::bad_alloc&) {
    return Status::out_of_memory("not enough memory for the scratch of a product");
  }
}

}  // namespace

Status forward(const ForwardArgs& args, const Executor& executor) { return run(args, executor); }

Status input_gradient(const InputGradientArgs& args, const Executor& executor) {
  return run(args, executor);
}

Status weight_gradient(const WeightGradientArgs& args, const Executor& executor) {
  return run(args, executor);
}

Status block_norms(const BlockNormsArgs& args, const Executor& executor) {
  return run(args, executor);
}

}  // namespace block_sparse::cpu
