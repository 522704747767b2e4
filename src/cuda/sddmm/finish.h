// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "block_sparse/cuda.h"

namespace block_sparse::cuda {

/// Parts that the tokens are cut into for a weight gradient, so that every
/// multiprocessor has several pieces of work; 1 without a workspace for the
/// partial sums. `pieces` is how many there are before.
struct Splits {
  int count = 1;
  int tokens = 0;  // of a part, a multiple of `multiple`
};
Splits choose_splits(const WeightGradientArgs& args, std::int64_t pieces, int multiple,
                     int multiprocessors, std::size_t workspace_bytes);

/// Bytes of the partial sums of so many parts.
std::size_t partial_bytes(const WeightGradientArgs& args, int splits);

/// If there is more than one part, adds them up (in order) into dvalues, and clears spare slots
/// unless accumulating.
Status finish_weight_gradient(const WeightGradientArgs& args, int splits, Stream stream);

}  // namespace block_sparse::cuda
