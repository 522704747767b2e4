// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>

#include "block_sparse/executor.h"

namespace block_sparse::torch_ops {

/// Work runs on torch's own threads, as many as torch.set_num_threads says.
class TorchExecutor final : public Executor {
 public:
  int concurrency() const override { return static_cast<int>(torch::stable::get_num_threads()); }

  void parallel_for(std::int64_t tasks, RangeFunction body) const override {
    torch::stable::parallel_for(0, tasks, /*grain_size=*/1, body);
  }
};

}  // namespace block_sparse::torch_ops
