// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "block_sparse/cuda.h"

/// Run with a driver.cc in place of the driver; BLOCK_SPARSE_DRIVER is the
/// version that it pretends to be of.
namespace block_sparse::cuda {
namespace {

std::string expected_sentence() {
  const std::string driver = std::getenv("BLOCK_SPARSE_DRIVER");
  if (driver == "0") return "No CUDA driver was found; use the CPU.";
  const std::string needed =
      std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
  return "The CUDA driver is made for CUDA 11.8, expected at least " + needed +
         "; update the driver, or use the CPU.";
}

TEST(WithoutGpu, ProductsSayWhy) {
  ForwardArgs args;
  args.pattern.rows = args.pattern.cols = 64;
  args.pattern.block_height = args.pattern.block_width = 32;
  args.tokens = 1;
  args.ldx = args.ldy = 64;
  for (int call = 0; call < 2; ++call) {  // the second asks anew
    const Status status = forward(args, nullptr);
    EXPECT_EQ(status.code(), StatusCode::unsupported);
    EXPECT_EQ(status.message(), expected_sentence());
    EXPECT_EQ(kernel_of(args), expected_sentence());
  }
}

TEST(WithoutGpu, SoDoChecksOfPatterns) {
  PatternView pattern;
  std::int32_t scratch = 0;
  EXPECT_EQ(check_pattern(pattern, &scratch, nullptr).message(), expected_sentence());
  EXPECT_EQ(transpose_pattern(pattern, nullptr, nullptr, nullptr, nullptr, nullptr).message(),
            expected_sentence());
}

}  // namespace
}  // namespace block_sparse::cuda
