// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "block_sparse/cpu_features.h"
#include "block_sparse/types.h"

namespace block_sparse {
namespace {

TEST(Features, WiderSetsComeWithTheNarrower) {
  const cpu::Features features = cpu::detected_features();
  const auto has = [features](cpu::Feature feature) { return (features & feature) != 0; };
  EXPECT_LE(has(cpu::avx512), has(cpu::avx2_fma));
  EXPECT_LE(has(cpu::avx512_bf16), has(cpu::avx512));
  EXPECT_LE(has(cpu::amx_bf16), has(cpu::avx512));
  EXPECT_EQ(features, cpu::detected_features());
}

#if defined(__x86_64__)
TEST(Features, AgreeWithTheCompilersOwnDetection) {
  const cpu::Features features = cpu::detected_features();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  EXPECT_EQ((features & cpu::avx2_fma) != 0, avx2);
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  EXPECT_EQ((features & cpu::avx512) != 0, avx512);
}
#endif

TEST(Features, HaveNames) {
  EXPECT_EQ(cpu::to_string(0), "baseline");
  EXPECT_EQ(cpu::to_string(cpu::avx2_fma), "avx2_fma");
  EXPECT_EQ(cpu::to_string(cpu::avx2_fma | cpu::avx512 | cpu::avx512_bf16 | cpu::amx_bf16),
            "avx2_fma avx512 avx512_bf16 amx_bf16");
}

TEST(Types, HaveNamesAndSizes) {
  EXPECT_STREQ(name_of(DataType::f32), "float32");
  EXPECT_STREQ(name_of(DataType::f64), "float64");
  EXPECT_STREQ(name_of(DataType::bf16), "bfloat16");
  EXPECT_STREQ(name_of(DataType::f16), "float16");
  EXPECT_EQ(size_of(DataType::f32), 4u);
  EXPECT_EQ(size_of(DataType::f64), 8u);
  EXPECT_EQ(size_of(DataType::bf16), 2u);
  EXPECT_EQ(size_of(DataType::f16), 2u);
  EXPECT_STREQ(name_of(Activation::none), "none");
  EXPECT_STREQ(name_of(Activation::relu), "relu");
  EXPECT_STREQ(name_of(Activation::gelu), "gelu");
  EXPECT_STREQ(name_of(Activation::gelu_tanh), "gelu_tanh");
  EXPECT_STREQ(name_of(Activation::silu), "silu");
}

}  // namespace
}  // namespace block_sparse
