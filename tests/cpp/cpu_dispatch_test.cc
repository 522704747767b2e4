// SPDX-License-Identifier: Apache-2.0
#include "cpu/dispatch.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "product_checks.h"

/// Which kernel runs on any machine, and how the environment overrides that.
/// Features are passed in: nothing here depends on the processor of the test
/// but for what is run.
namespace block_sparse::cpu {
namespace {

constexpr Features baseline = 0;
constexpr Features narrow = avx2_fma;
constexpr Features wide = avx2_fma | avx512;
constexpr Features paired = wide | avx512_bf16;
constexpr Features tiled = wide | amx_bf16;
constexpr Features widest = wide | avx512_bf16 | amx_bf16;

template <class Args>
Args problem(DataType type, std::int64_t block_height, std::int64_t block_width,
             std::int64_t tokens) {
  Args args;
  args.dtype = type;
  args.pattern.rows = 100;
  args.pattern.cols = 200;
  args.pattern.block_height = block_height;
  args.pattern.block_width = block_width;
  args.tokens = tokens;
  return args;
}

template <class Args>
std::string chosen(Features features, DataType type = DataType::f32, std::int64_t block_height = 32,
                   std::int64_t block_width = 32, std::int64_t tokens = 64) {
  return choose(problem<Args>(type, block_height, block_width, tokens), features).name;
}

template <class Args>
const Kernel<Args>& reference() {
  return kernels<Args>().back();
}

#if defined(__x86_64__)

TEST(Choice, TakesTheWidestInstructionsThatThereAre) {
  EXPECT_EQ(chosen<ForwardArgs>(baseline), "spmm_reference");
  EXPECT_EQ(chosen<ForwardArgs>(narrow), "spmm_avx2_6x16");
  EXPECT_EQ(chosen<ForwardArgs>(wide), "spmm_avx512_14x32");
  EXPECT_EQ(chosen<ForwardArgs>(widest), "spmm_avx512_14x32");

  EXPECT_EQ(chosen<InputGradientArgs>(baseline), "spmm_t_reference");
  EXPECT_EQ(chosen<InputGradientArgs>(narrow), "spmm_t_avx2_6x16");
  EXPECT_EQ(chosen<InputGradientArgs>(wide), "spmm_t_avx512_14x32");

  EXPECT_EQ(chosen<WeightGradientArgs>(baseline), "sddmm_reference");
  EXPECT_EQ(chosen<WeightGradientArgs>(narrow), "sddmm_avx2_6x16");
  EXPECT_EQ(chosen<WeightGradientArgs>(wide), "sddmm_avx512_14x32");

  EXPECT_EQ(chosen<BlockNormsArgs>(baseline), "block_norms_reference");
  EXPECT_EQ(chosen<BlockNormsArgs>(narrow), "block_norms_avx2_6x16");
  EXPECT_EQ(chosen<BlockNormsArgs>(wide), "block_norms_avx512_14x32");
}

TEST(Choice, WideInstructionsWithoutTheNarrowAreNotEnough) {
  EXPECT_EQ(chosen<ForwardArgs>(avx512), "spmm_reference");
}

TEST(Choice, FewTokensAreDecoded) {
  for (const std::int64_t tokens : {0, 1, 6}) {
    EXPECT_EQ(chosen<ForwardArgs>(narrow, DataType::f32, 16, 64, tokens), "spmm_decode_avx2");
    EXPECT_EQ(chosen<ForwardArgs>(wide, DataType::bf16, 64, 16, tokens), "spmm_decode_avx512");
    EXPECT_EQ(chosen<ForwardArgs>(baseline, DataType::f32, 16, 64, tokens), "spmm_reference");
    EXPECT_EQ(chosen<InputGradientArgs>(narrow, DataType::f32, 16, 64, tokens), "spmm_t_avx2_6x16");
  }
}

TEST(Choice, TokensThatFillVectorsNeedNoPackedW) {
  for (const std::int64_t tokens : {12, 16, 24, 32}) {
    EXPECT_EQ(chosen<ForwardArgs>(wide, DataType::f32, 16, 64, tokens), "spmm_tokens_avx512");
    EXPECT_EQ(chosen<ForwardArgs>(narrow, DataType::f32, 32, 32, tokens), "spmm_tokens_avx2");
    EXPECT_EQ(chosen<ForwardArgs>(wide, DataType::bf16, 16, 64, tokens), "spmm_avx512_14x32");
    EXPECT_EQ(chosen<InputGradientArgs>(wide, DataType::f32, 16, 64, tokens),
              "spmm_t_avx512_14x32");
  }
  for (const std::int64_t tokens : {7, 11, 17, 23, 33}) {
    EXPECT_EQ(chosen<ForwardArgs>(wide, DataType::f32, 16, 64, tokens), "spmm_avx512_14x32");
  }
  EXPECT_EQ(chosen<ForwardArgs>(narrow, DataType::f32, 16, 64, 7), "spmm_tokens_avx2");
  EXPECT_EQ(chosen<ForwardArgs>(narrow, DataType::f32, 16, 64, 9), "spmm_avx2_6x16");
}

TEST(Choice, OtherBlocksOfFloat32HaveTheTokensAlongVectors) {
  for (const std::int64_t tokens : {1, 9, 1000}) {
    EXPECT_EQ(chosen<ForwardArgs>(wide, DataType::f32, 8, 8, tokens), "spmm_tokens_avx512");
    EXPECT_EQ(chosen<ForwardArgs>(narrow, DataType::f32, 16, 1, tokens), "spmm_tokens_avx2");
    EXPECT_EQ(chosen<InputGradientArgs>(wide, DataType::f32, 1, 16, tokens),
              "spmm_t_tokens_avx512");
    EXPECT_EQ(chosen<InputGradientArgs>(narrow, DataType::f32, 3, 5, tokens), "spmm_t_tokens_avx2");
    EXPECT_EQ(chosen<WeightGradientArgs>(wide, DataType::f32, 8, 8, tokens), "sddmm_tokens_avx512");
    EXPECT_EQ(chosen<WeightGradientArgs>(narrow, DataType::f32, 1, 1, tokens), "sddmm_tokens_avx2");
    EXPECT_EQ(chosen<BlockNormsArgs>(wide, DataType::f32, 16, 8, tokens),
              "block_norms_tokens_avx512");
    EXPECT_EQ(chosen<BlockNormsArgs>(narrow, DataType::f32, 8, 8, tokens),
              "block_norms_tokens_avx2");
  }
}

TEST(Choice, SixteenBitTypesHaveFastKernels) {
  for (const DataType type : {DataType::bf16, DataType::f16}) {
    EXPECT_EQ(chosen<ForwardArgs>(narrow, type), "spmm_avx2_6x16");
    EXPECT_EQ(chosen<InputGradientArgs>(wide, type), "spmm_t_avx512_14x32");
    EXPECT_EQ(chosen<WeightGradientArgs>(narrow, type), "sddmm_avx2_6x16");
    EXPECT_EQ(chosen<BlockNormsArgs>(wide, type), "block_norms_avx512_14x32");
  }
}

TEST(Choice, TilesOfAmxComeFirstForBf16) {
  const auto bf16 = DataType::bf16;
  for (const Features features : {tiled, widest}) {
    EXPECT_EQ(chosen<ForwardArgs>(features, bf16), "spmm_amx_32x32");
    EXPECT_EQ(chosen<InputGradientArgs>(features, bf16), "spmm_t_amx_32x32");
    EXPECT_EQ(chosen<WeightGradientArgs>(features, bf16), "sddmm_amx_32x32");
    EXPECT_EQ(chosen<BlockNormsArgs>(features, bf16), "block_norms_amx_32x32");
    EXPECT_EQ(chosen<ForwardArgs>(features, bf16, 16, 16, 6), "spmm_decode_avx512");
    EXPECT_EQ(chosen<ForwardArgs>(features, bf16, 16, 24), "spmm_reference");
  }
}

TEST(Choice, Bf16InstructionsAreForBf16) {
  const auto bf16 = DataType::bf16;
  EXPECT_EQ(chosen<ForwardArgs>(paired, bf16), "spmm_avx512_bf16_14x32");
  EXPECT_EQ(chosen<InputGradientArgs>(paired, bf16), "spmm_t_avx512_bf16_14x32");
  EXPECT_EQ(chosen<WeightGradientArgs>(paired, bf16), "sddmm_avx512_bf16_14x32");
  EXPECT_EQ(chosen<BlockNormsArgs>(paired, bf16), "block_norms_avx512_bf16_14x32");
  EXPECT_EQ(chosen<ForwardArgs>(paired, bf16, 16, 16, 6), "spmm_decode_avx512");
  EXPECT_EQ(chosen<ForwardArgs>(paired, bf16, 16, 24), "spmm_reference");
  // bf16 has 3 bits less than f16, so f16 goes through f32.
  for (const DataType type : {DataType::f16, DataType::f32}) {
    EXPECT_EQ(chosen<ForwardArgs>(widest, type), "spmm_avx512_14x32");
    EXPECT_EQ(chosen<InputGradientArgs>(widest, type), "spmm_t_avx512_14x32");
    EXPECT_EQ(chosen<WeightGradientArgs>(widest, type), "sddmm_avx512_14x32");
    EXPECT_EQ(chosen<BlockNormsArgs>(widest, type), "block_norms_avx512_14x32");
  }
}

#endif

template <class Args>
void expect_reference_for_what_tiles_refuse() {
  const std::string name = reference<Args>().name;
  for (const std::int64_t tokens : {1, 64}) {
    EXPECT_EQ(chosen<Args>(widest, DataType::f64, 32, 32, tokens), name);
    EXPECT_EQ(chosen<Args>(widest, DataType::bf16, 24, 32, tokens), name);
    EXPECT_EQ(chosen<Args>(widest, DataType::f16, 32, 8, tokens), name);
    EXPECT_EQ(chosen<Args>(widest, DataType::bf16, 1, 1, tokens), name);
  }
}

TEST(Choice, Float64AndOtherBlocksOf16BitsRunOnTheReference) {
  expect_reference_for_what_tiles_refuse<ForwardArgs>();
  expect_reference_for_what_tiles_refuse<InputGradientArgs>();
  expect_reference_for_what_tiles_refuse<WeightGradientArgs>();
  expect_reference_for_what_tiles_refuse<BlockNormsArgs>();
}

template <class Args>
void expect_last_takes_anything() {
  EXPECT_EQ(reference<Args>().needs, baseline);
  EXPECT_EQ(reference<Args>().refuse(problem<Args>(DataType::f64, 3, 5, 1000)), nullptr);
}

TEST(Kernels, TheLastTakesAnything) {
  expect_last_takes_anything<ForwardArgs>();
  expect_last_takes_anything<InputGradientArgs>();
  expect_last_takes_anything<WeightGradientArgs>();
  expect_last_takes_anything<BlockNormsArgs>();
}

TEST(Environment, UnsetChangesNothing) {
  for (const char* empty : {static_cast<const char*>(nullptr), ""}) {
    const Settings settings = parse_settings(empty, empty);
    EXPECT_FALSE(settings.trace);
    EXPECT_TRUE(settings.forced.empty());
    EXPECT_EQ(settings.error, "");
  }
}

TEST(Environment, OnlyDispatchIsTraced) {
  EXPECT_TRUE(parse_settings("dispatch", nullptr).trace);
  EXPECT_FALSE(parse_settings("1", nullptr).trace);
}

TEST(Environment, ForcesAListOfKernels) {
  const std::vector<std::string> one = {"spmm_reference"};
  const std::vector<std::string> two = {"spmm_reference", "sddmm_reference"};
  EXPECT_EQ(parse_settings(nullptr, "spmm_reference").forced, one);
  EXPECT_EQ(parse_settings(nullptr, "spmm_reference,sddmm_reference").forced, two);
  EXPECT_EQ(parse_settings(nullptr, "spmm_reference,").error, "");
}

TEST(Environment, UnknownNamesAreRefusedInASentence) {
  EXPECT_EQ(parse_settings(nullptr, "spmm_reference,fastest").error,
            "BLOCK_SPARSE_FORCE names 'fastest', expected the name of a kernel as "
            "BLOCK_SPARSE_VERBOSE=dispatch prints it");
  EXPECT_NE(parse_settings(nullptr, ",spmm_reference").error, "");
  EXPECT_NE(parse_settings(nullptr, "spmm_reference ").error, "");
}

/// A forward of ones: y = 16 wherever the reference has run.
class Dispatch : public testing::Test {
 protected:
  Dispatch()
      : pattern_(test::random_pattern({16, 16, 16, 16}, 1.0, 0, random_)),
        x_(DataType::f32, 2, 16, 16),
        values_(DataType::f32, 1, 256, 256),
        y_(DataType::f32, 2, 16, 16) {
    x_.fill_all(1);
    values_.fill_all(1);
  }
  ForwardArgs args() {
    return test::forward_args(pattern_, x_, values_, nullptr, Activation::none, nullptr, &y_);
  }
  Status run(Features features, const Settings& settings) {
    y_.fill_all(test::untouched);
    return dispatch(args(), serial_executor(), features, settings);
  }
  bool has_run() const { return y_.at(1, 15) == 16; }

  test::Random random_{1};
  test::PatternArrays pattern_;
  test::Matrix x_, values_, y_;
};

TEST_F(Dispatch, ReportsAnUnknownNameInsteadOfRunning) {
  const Status status = run(baseline, parse_settings(nullptr, "fastest"));
  EXPECT_EQ(status.code(), StatusCode::invalid_argument);
  EXPECT_EQ(status.message(), parse_settings(nullptr, "fastest").error);
  EXPECT_FALSE(has_run());
}

TEST_F(Dispatch, NamesOfOtherProductsLeaveTheChoice) {
  testing::internal::CaptureStderr();
  EXPECT_TRUE(run(baseline, parse_settings("dispatch", "sddmm_reference")).ok());
  EXPECT_EQ(testing::internal::GetCapturedStderr().find("forced"), std::string::npos);
  EXPECT_TRUE(has_run());
}

TEST_F(Dispatch, TracesWhatIsForced) {
  testing::internal::CaptureStderr();
  EXPECT_TRUE(run(baseline, parse_settings("dispatch", "spmm_reference")).ok());
  EXPECT_EQ(testing::internal::GetCapturedStderr(),
            "block_sparse: forward float32 (16, 16) in blocks of (16, 16), 2 tokens: "
            "spmm_reference forced\n");
  EXPECT_TRUE(has_run());
}

TEST_F(Dispatch, IsSilentUnlessAsked) {
  testing::internal::CaptureStderr();
  EXPECT_TRUE(run(baseline, {}).ok());
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

#if defined(__x86_64__)

TEST_F(Dispatch, TracesEachRefusalAndTheChoice) {
  testing::internal::CaptureStderr();
  EXPECT_TRUE(run(baseline, parse_settings("dispatch", nullptr)).ok());
  const std::string problem =
      "block_sparse: forward float32 (16, 16) in blocks of (16, 16), 2 tokens: ";
  const std::string lacks = " refused: this processor lacks its instructions\n";
  EXPECT_EQ(testing::internal::GetCapturedStderr(),
            problem + "spmm_decode_avx512" + lacks + problem + "spmm_amx_32x32" + lacks + problem +
                "spmm_avx512_bf16_14x32" + lacks + problem + "spmm_tokens_avx512" + lacks +
                problem + "spmm_avx512_14x32" + lacks + problem + "spmm_decode_avx2" + lacks +
                problem + "spmm_tokens_avx2" + lacks + problem + "spmm_avx2_6x16" + lacks +
                problem + "spmm_reference chosen\n");
}

TEST_F(Dispatch, AForcedKernelThatCannotRunSaysWhy) {
  const Settings settings = parse_settings(nullptr, "spmm_avx512_14x32");
  const Status lacking = run(narrow, settings);
  EXPECT_EQ(lacking.code(), StatusCode::unsupported);
  EXPECT_EQ(lacking.message(),
            "BLOCK_SPARSE_FORCE asks for spmm_avx512_14x32, which cannot run this product: this "
            "processor lacks its instructions");
  EXPECT_FALSE(has_run());

  const auto message = [](const char* kernel, const ForwardArgs& args) {
    return dispatch(args, serial_executor(), widest, parse_settings(nullptr, kernel)).message();
  };
  const std::string tail = ", which cannot run this product: ";
  EXPECT_EQ(message("spmm_decode_avx2", problem<ForwardArgs>(DataType::f32, 16, 16, 7)),
            "BLOCK_SPARSE_FORCE asks for spmm_decode_avx2" + tail + "there are too many tokens");
  EXPECT_EQ(message("spmm_avx2_6x16", problem<ForwardArgs>(DataType::f64, 16, 16, 7)),
            "BLOCK_SPARSE_FORCE asks for spmm_avx2_6x16" + tail + "it computes in f32");
  for (const std::string kernel : {"spmm_avx512_bf16_14x32", "spmm_amx_32x32"}) {
    EXPECT_EQ(message(kernel.c_str(), problem<ForwardArgs>(DataType::f16, 16, 16, 7)),
              "BLOCK_SPARSE_FORCE asks for " + kernel + tail + "it multiplies bf16");
  }
  EXPECT_EQ(message("spmm_avx2_6x16", problem<ForwardArgs>(DataType::f32, 8, 16, 7)),
            "BLOCK_SPARSE_FORCE asks for spmm_avx2_6x16" + tail +
                "the block height is no multiple of 16");
  EXPECT_EQ(
      message("spmm_avx2_6x16", problem<ForwardArgs>(DataType::f32, 16, 8, 7)),
      "BLOCK_SPARSE_FORCE asks for spmm_avx2_6x16" + tail + "the block width is no multiple of 16");
}

#endif

}  // namespace
}  // namespace block_sparse::cpu
