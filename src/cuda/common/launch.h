// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/common/device.h"

namespace block_sparse::cuda {

/// A launch, in clusters of `cluster` CTAs along x, that may start while the kernel before
/// it ends: the kernel must wait for it (`ptx::wait_for_kernels_before`) ahead of its first
/// access to memory. Before Hopper it starts afterwards, as any other.
struct DependentLaunch {
  cudaLaunchAttribute attributes[2]{};
  cudaLaunchConfig_t config{};

  DependentLaunch(const Device& device, dim3 ctas, int threads, int shared_bytes,
                  cudaStream_t stream, unsigned cluster = 1) {
    config.gridDim = ctas;
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = static_cast<std::size_t>(shared_bytes);
    config.stream = stream;
    config.attrs = attributes;
    if (cluster > 1) {
      cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim.x = cluster;
      attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    }
    if (device.major >= 9) {
      cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
      attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
      attribute.val.programmaticStreamSerializationAllowed = 1;
    }
  }
  DependentLaunch(const DependentLaunch&) = delete;  // `config` points into it
  DependentLaunch& operator=(const DependentLaunch&) = delete;

  template <class... Parameters, class... Arguments>
  Status operator()(const char* doing, void (*kernel)(Parameters...),
                    const Arguments&... arguments) const {
    return to_status(cudaLaunchKernelEx(&config, kernel, arguments...), doing);
  }
};

}  // namespace block_sparse::cuda
