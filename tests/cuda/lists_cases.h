// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "layer.h"

namespace block_sparse::cuda::test {

/// Layers for the Hopper kernel on lists of small blocks.
std::vector<LayerCase> lists_cases();

}  // namespace block_sparse::cuda::test
