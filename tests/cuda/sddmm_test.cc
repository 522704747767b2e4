// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstdint>
#include <initializer_list>

#include "layer.h"

namespace block_sparse::cuda::test {
namespace {

struct SddmmCase {
  LayerCase layer;
  std::string kernel;
  DataType out_dtype;
  bool accumulate = false;
  bool workspace = true;
};
void PrintTo(const SddmmCase& c, std::ostream* out) {
  *out << c.kernel << "_" << name_of_case(c.layer) << "_out" << static_cast<int>(c.out_dtype)
       << (c.accumulate ? "_accumulate" : "") << (c.workspace ? "" : "_no_workspace");
}

class WeightGradient : public testing::TestWithParam<SddmmCase> {};

/// The gradient by slots, (slots * bh, bw); what is not stored is 0.
Expected by_slots(const Layer& l) {
  const Expected dense = l.dense_gradient();
  const std::int64_t bh = l.c.block_height;
  const std::int64_t bw = l.c.block_width;
  Expected e;
  e.value.assign(static_cast<std::size_t>(l.slots() * bh * bw), 0);
  e.magnitude = e.value;
  for (std::int64_t r = 0; r < l.block_rows(); ++r) {
    for (std::int32_t i = l.crow[static_cast<std::size_t>(r)];
         i < l.crow[static_cast<std::size_t>(r + 1)]; ++i) {
      const std::int64_t k = l.col[static_cast<std::size_t>(i)];
      const std::int64_t slot = l.ids[static_cast<std::size_t>(i)];
      for (std::int64_t m = 0; m < bh && r * bh + m < l.c.out; ++m) {
        for (std::int64_t n = 0; n < bw && k * bw + n < l.c.in; ++n) {
          const auto to = static_cast<std::size_t>((slot * bh + m) * bw + n);
          const auto from = static_cast<std::size_t>((r * bh + m) * l.c.in + k * bw + n);
          e.value[to] = dense.value[from];
          e.magnitude[to] = dense.magnitude[from];
        }
      }
    }
  }
  return e;
}

TEST_P(WeightGradient, IsRight) {
  const SddmmCase& c = GetParam();
  const Layer l(c.layer, 7);
  const DeviceLayer d(l);
  const std::int64_t rows = l.slots() * l.c.block_height;
  const std::size_t elements = static_cast<std::size_t>(rows * l.c.block_width);
  DeviceBuffer out(elements * size_of(c.out_dtype));
  Expected want = by_slots(l);
  if (c.accumulate) {
    std::vector<double> before(elements);
    for (std::size_t i = 0; i < elements; ++i) {
      before[i] = rounded(std::sin(static_cast<double>(i)), c.out_dtype);
      want.value[i] += before[i];
      want.magnitude[i] += std::fabs(before[i]);
    }
    const std::vector<std::uint8_t> bytes = encoded(before, c.out_dtype);
    out.upload(bytes.data(), bytes.size());
  }
  WeightGradientArgs a;
  a.dtype = l.c.dtype;
  a.out_dtype = c.out_dtype;
  a.allow_tf32 = l.c.tf32;
  a.pattern = d.pattern;
  a.plan = d.plan.as<std::int32_t>();
  a.tokens = l.c.tokens;
  a.dy = d.dy.data();
  a.lddy = d.ldy;
  a.x = d.x.data();
  a.ldx = d.ldx;
  a.accumulate = c.accumulate;
  a.dvalues = out.data();
  const Forced forced(c.kernel);  // whose workspace it is
  const DeviceBuffer workspace(c.workspace ? weight_gradient_workspace(a) : 0);
  a.workspace = {workspace.data(), workspace.size()};
  ASSERT_EQ(kernel_of(a), c.kernel);
  const Status s = weight_gradient(a, nullptr);
  ASSERT_TRUE(s.ok()) << s.message();
  BLOCK_SPARSE_CUDA_OK(cudaDeviceSynchronize());
  expect_close(out, c.out_dtype, want, rows, l.c.block_width, 0, l.c.tokens, Activation::none,
               l.c.dtype == DataType::f64 ? DataType::f64 : DataType::f32);
}

std::vector<SddmmCase> cases_of(const std::string& kernel, const std::vector<LayerCase>& layers) {
  const bool needs_workspace = kernel == "sm90_cells";
  std::vector<SddmmCase> cases;
  for (const LayerCase& layer : layers) {
    cases.push_back({layer, kernel, layer.dtype});
    cases.push_back({layer, kernel, layer.dtype, true});
    if (size_of(layer.dtype) == 2) {
      cases.push_back({layer, kernel, DataType::f32, false, needs_workspace});
      cases.push_back({layer, kernel, DataType::f32, true});
    }
  }
  return cases;
}

std::vector<LayerCase> generic_layers() {
  std::vector<LayerCase> layers;
  for (const DataType type : {DataType::f32, DataType::f64, DataType::bf16, DataType::f16}) {
    layers.push_back({.out = 96,
                      .in = 160,
                      .block_height = 32,
                      .block_width = 32,
                      .tokens = 127,
                      .dtype = type,
                      .gap = 5});
    layers.push_back({.out = 50,
                      .in = 70,
                      .block_height = 16,
                      .block_width = 24,
                      .tokens = 33,
                      .dtype = type,
                      .gap = 1});
    layers.push_back(
        {.out = 17, .in = 9, .block_height = 1, .block_width = 3, .tokens = 3, .dtype = type});
    layers.push_back(
        {.out = 64, .in = 64, .block_height = 32, .block_width = 32, .tokens = 0, .dtype = type});
  }
  return layers;
}

INSTANTIATE_TEST_SUITE_P(Generic, WeightGradient,
                         testing::ValuesIn(cases_of("generic_sddmm", generic_layers())));

std::vector<LayerCase> square_layers(std::initializer_list<std::int64_t> sides) {
  std::vector<LayerCase> layers;
  for (const DataType type : {DataType::bf16, DataType::f16}) {
    for (const std::int64_t b : sides) {
      for (const std::int64_t tokens : {1, 3, 127, 128, 1000}) {
        layers.push_back({.out = 512,
                          .in = 640,
                          .block_height = b,
                          .block_width = b,
                          .density = 0.4,
                          .tokens = tokens,
                          .dtype = type});
      }
      for (const Fill fill : {Fill::power_law, Fill::one_full_row, Fill::empty}) {
        layers.push_back({.out = 384,
                          .in = 768,
                          .block_height = b,
                          .block_width = b,
                          .density = 0.3,
                          .tokens = 1100,
                          .dtype = type,
                          .fill = fill,
                          .gap = 8});
      }
    }
  }
  return layers;
}

std::vector<LayerCase> sm90_layers() {
  std::vector<LayerCase> layers = square_layers({64, 128});
  // More block rows than a warp scans at once.
  layers.push_back({.out = 64 * 70,
                    .in = 128,
                    .block_height = 64,
                    .block_width = 64,
                    .density = 0.3,
                    .tokens = 64});
  return layers;
}

std::vector<LayerCase> cells_layers() {
  std::vector<LayerCase> layers = square_layers({16, 32, 64, 128});
  // Sides that differ, that no cell equals, and that end within a box of 64.
  for (const auto& [height, width] : {std::pair<std::int64_t, std::int64_t>{16, 32},
                                      {32, 16},
                                      {16, 128},
                                      {32, 64},
                                      {64, 32},
                                      {128, 64},
                                      {64, 128},
                                      {48, 80},
                                      {96, 32},
                                      {256, 256}}) {
    layers.push_back({.out = height * 5,
                      .in = width * 7,
                      .block_height = height,
                      .block_width = width,
                      .density = 0.5,
                      .tokens = height == 256 ? 100 : 600});
  }
  // More pieces than multiprocessors, and units of more than one piece.
  for (const std::int64_t b : {16, 32, 64, 128}) {
    layers.push_back({.out = 4096 + 2 * b,
                      .in = 2048 + b,
                      .block_height = b,
                      .block_width = b,
                      .density = 0.85,
                      .tokens = 33});
  }
  // Tokens in up to eight parts, and every number of cells together.
  for (const std::int64_t b : {16, 32, 64, 128}) {
    for (const double density : {.5, .25, .12, .04}) {
      layers.push_back({.out = 10 * 128,
                        .in = 6 * 128,
                        .block_height = b,
                        .block_width = b,
                        .density = density,
                        .tokens = 2090,
                        .dtype = density == .25 ? DataType::f16 : DataType::bf16});
    }
  }
  // Pieces that two CTAs share.
  for (const auto& [b, density] :
       {std::pair<std::int64_t, double>{32, .12}, {32, .06}, {64, .12}, {128, .12}}) {
    layers.push_back({.out = 8192 + b,
                      .in = 4096,
                      .block_height = b,
                      .block_width = b,
                      .density = density,
                      .tokens = 40});
  }
  return layers;
}

std::vector<LayerCase> sm80_layers() {
  std::vector<LayerCase> layers;
  for (const std::int64_t height : {16, 32, 64, 128}) {
    for (const std::int64_t width : {16, 32, 64, 128}) {
      for (const std::int64_t tokens : {1, 127, 1100}) {
        layers.push_back({.out = 256,
                          .in = 384,
                          .block_height = height,
                          .block_width = width,
                          .density = 0.4,
                          .tokens = tokens,
                          .dtype = tokens == 127 ? DataType::f16 : DataType::bf16,
                          .gap = 8});
      }
    }
  }
  for (const Fill fill : {Fill::power_law, Fill::one_full_row, Fill::empty}) {
    layers.push_back({.out = 768,
                      .in = 512,
                      .block_height = 16,
                      .block_width = 16,
                      .density = 0.3,
                      .tokens = 600,
                      .fill = fill});
  }
  return layers;
}

/// The weight gradient of the portable f32 family.
std::vector<LayerCase> f32_layers() {
  std::vector<LayerCase> layers;
  for (const bool tf32 : {false, true}) {
    for (const std::int64_t height : {16, 32, 64, 128}) {
      for (const std::int64_t width : {16, 32, 64, 128}) {
        for (const std::int64_t tokens : {1, 127, 1100}) {
          layers.push_back({.out = 256,
                            .in = 384,
                            .block_height = height,
                            .block_width = width,
                            .density = 0.4,
                            .tokens = tokens,
                            .dtype = DataType::f32,
                            .gap = 4,
                            .tf32 = tf32});
        }
      }
      for (const Fill fill : {Fill::power_law, Fill::one_full_row, Fill::empty}) {
        layers.push_back({.out = 768,
                          .in = 512,
                          .block_height = height,
                          .block_width = height,
                          .density = 0.3,
                          .tokens = 130,
                          .dtype = DataType::f32,
                          .fill = fill,
                          .tf32 = tf32});
      }
    }
  }
  return layers;
}

INSTANTIATE_TEST_SUITE_P(F32, WeightGradient,
                         testing::ValuesIn(cases_of("sm80_gradient", f32_layers())));
INSTANTIATE_TEST_SUITE_P(Sm80, WeightGradient,
                         testing::ValuesIn(cases_of("sm80_sddmm", sm80_layers())));
INSTANTIATE_TEST_SUITE_P(Sm90, WeightGradient,
                         testing::ValuesIn(cases_of("sm90_sddmm", sm90_layers())));
INSTANTIATE_TEST_SUITE_P(Cells, WeightGradient,
                         testing::ValuesIn(cases_of("sm90_cells", cells_layers())));

TEST(WeightGradientDispatch, TheFastestKernelIsChosen) {
  cudaDeviceProp device{};
  BLOCK_SPARSE_CUDA_OK(cudaGetDeviceProperties(&device, 0));
  const bool hopper = device.major == 9;
  // The choice reads no data.
  void* const data = reinterpret_cast<void*>(std::uintptr_t{1} << 20);
  WeightGradientArgs a;
  a.dtype = a.out_dtype = DataType::bf16;
  a.pattern.cols = a.ldx = 4096;
  a.dy = a.x = a.dvalues = data;
  const auto chosen = [&](std::int64_t out, std::int64_t height, std::int64_t width, double density,
                          std::int64_t tokens = 8192) {
    a.pattern.rows = a.lddy = out;
    a.pattern.block_height = height;
    a.pattern.block_width = width;
    a.pattern.slots =
        static_cast<std::int64_t>(density * static_cast<double>(out / height * 4096 / width));
    a.tokens = tokens;
    a.workspace = {data, weight_gradient_workspace(a)};
    return kernel_of(a);
  };
  const char* cells = hopper ? "sm90_cells" : "sm80_sddmm";
  const char* high = hopper ? "sm90_sddmm" : "sm80_sddmm";
  for (const int side : {16, 32, 64, 128}) {
    EXPECT_EQ(chosen(14336, side, side, .5), cells);
    EXPECT_EQ(chosen(768, side, side, .05, 2048), cells);
    EXPECT_EQ(chosen(4096, side, side, .5, 1024), side <= 32 ? cells : high);
    EXPECT_EQ(chosen(768, side, side, .5, 1024), side <= 32 ? "sm80_sddmm" : high);
    EXPECT_EQ(chosen(4096, side, side, .5, 300), side <= 32 ? "sm80_sddmm" : high);
  }
  EXPECT_EQ(chosen(14336, 16, 32, .5), "sm80_sddmm");
}

struct NormsCase {
  LayerCase layer;
  std::string kernel;
};
void PrintTo(const NormsCase& c, std::ostream* out) {
  *out << c.kernel << "_" << name_of_case(c.layer);
}

class BlockNorms : public testing::TestWithParam<NormsCase> {};

TEST_P(BlockNorms, AreRight) {
  const Layer l(GetParam().layer, 8);
  const DeviceLayer d(l);
  const DataType type = l.c.dtype == DataType::f64 ? DataType::f64 : DataType::f32;
  const DeviceBuffer norms(static_cast<std::size_t>(l.block_rows() * l.block_cols()) *
                           size_of(type));
  BlockNormsArgs a;
  a.dtype = l.c.dtype;
  a.allow_tf32 = l.c.tf32;
  a.pattern = d.pattern;
  a.tokens = l.c.tokens;
  a.dy = d.dy.data();
  a.lddy = d.ldy;
  a.x = d.x.data();
  a.ldx = d.ldx;
  a.norms = norms.data();
  const Forced forced(GetParam().kernel);
  ASSERT_EQ(kernel_of(a), GetParam().kernel);
  const Status s = block_norms(a, nullptr);
  ASSERT_TRUE(s.ok()) << s.message();
  BLOCK_SPARSE_CUDA_OK(cudaDeviceSynchronize());
  const Expected dense = l.dense_gradient();
  Expected want;
  for (std::int64_t r = 0; r < l.block_rows(); ++r) {
    for (std::int64_t k = 0; k < l.block_cols(); ++k) {
      double squares = 0, magnitude = 0;
      for (std::int64_t m = r * l.c.block_height; m < std::min((r + 1) * l.c.block_height, l.c.out);
           ++m) {
        for (std::int64_t n = k * l.c.block_width; n < std::min((k + 1) * l.c.block_width, l.c.in);
             ++n) {
          const auto i = static_cast<std::size_t>(m * l.c.in + n);
          squares += dense.value[i] * dense.value[i];
          magnitude += dense.magnitude[i] * dense.magnitude[i];
        }
      }
      want.value.push_back(std::sqrt(squares));
      want.magnitude.push_back(std::sqrt(magnitude));
    }
  }
  // A norm moves by at most the norm of the elements' errors; the sum of the
  // squares and the root add a rounding a term.
  expect_close(norms, type, want, l.block_rows(), l.block_cols(), 0,
               l.c.tokens + l.c.block_height * l.c.block_width, Activation::none, type);
}

std::vector<NormsCase> with_kernel(const std::string& kernel,
                                   const std::vector<LayerCase>& layers) {
  std::vector<NormsCase> cases;
  for (const LayerCase& layer : layers) cases.push_back({layer, kernel});
  return cases;
}

std::vector<LayerCase> portable_norms_layers() {
  std::vector<LayerCase> layers;
  for (const DataType type : {DataType::bf16, DataType::f16, DataType::f32}) {
    for (const bool tf32 : {false, true}) {
      if (tf32 && type != DataType::f32) continue;
      for (const std::int64_t height : {16, 32, 64, 128}) {
        for (const std::int64_t width : {16, 32, 64, 128}) {
          // Not whole tiles of 128 where the blocks are smaller.
          layers.push_back({.out = 128 + height,
                            .in = 256 + width,
                            .block_height = height,
                            .block_width = width,
                            .tokens = 300,
                            .dtype = type,
                            .gap = 8,
                            .tf32 = tf32});
        }
      }
      for (const std::int64_t tokens : {0, 1, 3, 127, 128}) {
        layers.push_back({.out = 384,
                          .in = 96,
                          .block_height = 32,
                          .block_width = 32,
                          .tokens = tokens,
                          .dtype = type,
                          .tf32 = tf32});
      }
      // More than a band of tiles.
      layers.push_back({.out = 128 * 18,
                        .in = 384,
                        .block_height = 64,
                        .block_width = 32,
                        .tokens = 40,
                        .dtype = type,
                        .tf32 = tf32});
    }
  }
  return layers;
}

INSTANTIATE_TEST_SUITE_P(Generic, BlockNorms,
                         testing::ValuesIn(with_kernel("generic_norms", generic_layers())));
INSTANTIATE_TEST_SUITE_P(Portable, BlockNorms,
                         testing::ValuesIn(with_kernel("sm80_norms", portable_norms_layers())));

}  // namespace
}  // namespace block_sparse::cuda::test
