// SPDX-License-Identifier: Apache-2.0
#include "cuda/sm90/cells/launch.cuh"

namespace block_sparse::cuda::sm90::cells {

Status launch_bf16(const WeightGradientArgs& a, const Layout& l, Stream stream) {
  return launch_cell<bf16>(a, l, stream);
}

}  // namespace block_sparse::cuda::sm90::cells
