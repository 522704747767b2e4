// SPDX-License-Identifier: Apache-2.0
#include "layer.h"
#include "lists_cases.h"

namespace block_sparse::cuda::test {
namespace {

DataType sum_type(DataType type) { return type == DataType::f64 ? DataType::f64 : DataType::f32; }

struct SpmmCase {
  LayerCase layer;
  std::string kernel;
};
void PrintTo(const SpmmCase& c, std::ostream* out) {
  *out << c.kernel << "_" << name_of_case(c.layer);
}

class Spmm : public testing::TestWithParam<SpmmCase> {};

TEST_P(Spmm, ForwardIsRight) {
  const Layer l(GetParam().layer, 1);
  const DeviceLayer d(l);
  const DeviceBuffer y(bytes_of(l.c.tokens, d.ldy, l.c.dtype));
  const Forced forced(GetParam().kernel);
  const ForwardArgs a = forward_args(l, d, y.data());
  ASSERT_EQ(kernel_of(a), GetParam().kernel);
  const Status s = forward(a, nullptr);
  ASSERT_TRUE(s.ok()) << s.message();
  BLOCK_SPARSE_CUDA_OK(cudaDeviceSynchronize());
  expect_close(y, l.c.dtype, l.forward(), l.c.tokens, l.c.out, l.c.gap, l.c.in, Activation::none,
               sum_type(l.c.dtype));
}

TEST_P(Spmm, InputGradientIsRight) {
  const Layer l(GetParam().layer, 2);
  const DeviceLayer d(l);
  const DeviceBuffer dx(bytes_of(l.c.tokens, d.ldx, l.c.dtype));
  const Forced forced(GetParam().kernel);
  const InputGradientArgs a = input_gradient_args(l, d, dx.data());
  ASSERT_EQ(kernel_of(a), GetParam().kernel);
  const Status s = input_gradient(a, nullptr);
  ASSERT_TRUE(s.ok()) << s.message();
  BLOCK_SPARSE_CUDA_OK(cudaDeviceSynchronize());
  expect_close(dx, l.c.dtype, l.input_gradient(), l.c.tokens, l.c.in, l.c.gap, l.c.out,
               Activation::none, sum_type(l.c.dtype));
}

std::vector<SpmmCase> generic_cases() {
  std::vector<SpmmCase> cases;
  for (const DataType type : {DataType::f32, DataType::f64, DataType::bf16, DataType::f16}) {
    cases.push_back({{.out = 96,
                      .in = 160,
                      .block_height = 32,
                      .block_width = 32,
                      .tokens = 127,
                      .dtype = type,
                      .gap = 5},
                     "generic_spmm"});
    cases.push_back({{.out = 50,
                      .in = 70,
                      .block_height = 16,
                      .block_width = 24,
                      .tokens = 33,
                      .dtype = type,
                      .gap = 1},
                     "generic_spmm"});
    cases.push_back(
        {{.out = 17, .in = 9, .block_height = 1, .block_width = 3, .tokens = 3, .dtype = type},
         "generic_spmm"});
    cases.push_back(
        {{.out = 130, .in = 64, .block_height = 65, .block_width = 5, .tokens = 1, .dtype = type},
         "generic_spmm"});
    cases.push_back(
        {{.out = 64, .in = 64, .block_height = 32, .block_width = 32, .tokens = 0, .dtype = type},
         "generic_spmm"});
  }
  return cases;
}

std::vector<SpmmCase> sm90_cases() {
  std::vector<SpmmCase> cases;
  const char* kernel = "sm90_wide";
  for (const DataType type : {DataType::bf16, DataType::f16}) {
    for (const std::int64_t b : {16, 32, 64, 128}) {
      for (const std::int64_t tokens : {1, 3, 127, 128, 1000}) {
        cases.push_back({{.out = 512,
                          .in = 384,
                          .block_height = b,
                          .block_width = b,
                          .density = 0.4,
                          .tokens = tokens,
                          .dtype = type},
                         kernel});
      }
      for (const double density : {0.05, 1.0}) {
        cases.push_back({{.out = 384,
                          .in = 640,
                          .block_height = b,
                          .block_width = b,
                          .density = density,
                          .tokens = 520,
                          .dtype = type,
                          .gap = 8},
                         kernel});
      }
      for (const Fill fill : {Fill::power_law, Fill::one_full_row, Fill::empty}) {
        cases.push_back({{.out = 768,
                          .in = 256,
                          .block_height = b,
                          .block_width = b,
                          .density = 0.3,
                          .tokens = 300,
                          .dtype = type,
                          .fill = fill},
                         kernel});
      }
    }
    // Odd numbers of lines and of tiles.
    cases.push_back(
        {{.out = 80, .in = 48, .block_height = 16, .block_width = 16, .tokens = 65, .dtype = type},
         kernel});
    cases.push_back({{.out = 96,
                      .in = 160,
                      .block_height = 32,
                      .block_width = 32,
                      .tokens = 700,
                      .dtype = type},
                     kernel});
    cases.push_back({{.out = 320,
                      .in = 192,
                      .block_height = 64,
                      .block_width = 64,
                      .tokens = 513,
                      .dtype = type},
                     kernel});
    cases.push_back({{.out = 384,
                      .in = 256,
                      .block_height = 128,
                      .block_width = 64,
                      .tokens = 257,
                      .dtype = type},
                     kernel});
    cases.push_back({{.out = 192,
                      .in = 512,
                      .block_height = 64,
                      .block_width = 256,
                      .tokens = 64,
                      .dtype = type},
                     kernel});
    // Groups of lines that are not whole, and tiles without a line.
    cases.push_back({{.out = 432,
                      .in = 80,
                      .block_height = 16,
                      .block_width = 16,
                      .tokens = 260,
                      .dtype = type},
                     kernel});
    cases.push_back({{.out = 224,
                      .in = 96,
                      .block_height = 32,
                      .block_width = 32,
                      .tokens = 260,
                      .dtype = type},
                     kernel});
    // A pair of tiles that begins in one line and ends in the next.
    cases.push_back({{.out = 960,
                      .in = 384,
                      .block_height = 192,
                      .block_width = 64,
                      .tokens = 400,
                      .dtype = type},
                     kernel});
    // Lines of more blocks than are read at a time.
    cases.push_back({{.out = 128,
                      .in = 6400,
                      .block_height = 64,
                      .block_width = 64,
                      .density = 0.9,
                      .tokens = 300,
                      .dtype = type},
                     kernel});
  }
  // More lines than are compared with each other at a time.
  cases.push_back({{.out = 17408,
                    .in = 64,
                    .block_height = 16,
                    .block_width = 16,
                    .density = 0.3,
                    .tokens = 300},
                   kernel});
  // More tiles than multiprocessors, several rounds of token tiles.
  for (const std::int64_t b : {16, 32}) {
    cases.push_back(
        {{.out = 1024, .in = 128, .block_height = b, .block_width = b, .tokens = 5000}, kernel});
  }
  cases.push_back(
      {{.out = 1024, .in = 128, .block_height = 64, .block_width = 64, .tokens = 5000}, kernel});
  cases.push_back(
      {{.out = 2048, .in = 192, .block_height = 64, .block_width = 64, .tokens = 2500}, kernel});
  // More than one round of the schedule's widest.
  cases.push_back(
      {{.out = 128, .in = 64, .block_height = 64, .block_width = 64, .tokens = 72000}, kernel});
  // Small blocks have another kernel, too.
  const std::size_t count = cases.size();
  for (std::size_t i = 0; i < count; ++i) {
    if (cases[i].layer.block_height < 64) cases.push_back({cases[i].layer, "sm90_spmm"});
  }
  return cases;
}

/// How a kernel sees its operands.
struct Arithmetic {
  DataType type;
  bool tf32;
};
constexpr Arithmetic kArithmetic[] = {
    {DataType::bf16, false}, {DataType::f16, false}, {DataType::f32, true}, {DataType::f32, false}};

std::vector<SpmmCase> decode_cases() {
  std::vector<SpmmCase> cases;
  for (const auto& [type, tf32] : kArithmetic) {
    const char* kernel = type == DataType::f32 && !tf32 ? "sm80_decode_f32" : "sm80_decode";
    for (const std::int64_t height : {16, 32, 64, 128}) {
      for (const std::int64_t width : {16, 32, 64, 128}) {
        // Every number of token tiles, whole and not; the odd ones with strides.
        for (const std::int64_t tokens : {1, 3, 7, 8, 16, 31, 33, 64}) {
          cases.push_back({{.out = 384,
                            .in = 640,
                            .block_height = height,
                            .block_width = width,
                            .density = 0.4,
                            .tokens = tokens,
                            .dtype = type,
                            .gap = tokens % 2 * 8,
                            .tf32 = tf32},
                           kernel});
        }
      }
      for (const Fill fill : {Fill::power_law, Fill::one_full_row, Fill::empty}) {
        cases.push_back({{.out = 768,
                          .in = 256,
                          .block_height = height,
                          .block_width = height,
                          .density = 0.3,
                          .tokens = 20,
                          .dtype = type,
                          .fill = fill,
                          .tf32 = tf32},
                         kernel});
      }
      // More blocks along K than are listed at once, and lines that a strip lacks.
      cases.push_back({{.out = 3 * height,
                        .in = std::int64_t{1040} * 16,
                        .block_height = height,
                        .block_width = 16,
                        .density = 0.9,
                        .tokens = 40,
                        .dtype = type,
                        .tf32 = tf32},
                       kernel});
      // More K than one round of the warps takes.
      cases.push_back({{.out = 128,
                        .in = 4096,
                        .block_height = height,
                        .block_width = height,
                        .density = 1.0,
                        .tokens = 33,
                        .dtype = type,
                        .tf32 = tf32},
                       kernel});
    }
  }
  return cases;
}

/// Up to 132 times 64 outputs cut K over two CTAs.
std::vector<SpmmCase> hopper_decode_cases() {
  std::vector<SpmmCase> cases;
  const auto add = [&](LayerCase layer) { cases.push_back({layer, "sm90_decode"}); };
  for (const DataType type : {DataType::bf16, DataType::f16}) {
    for (const std::int64_t height : {64, 128, 192}) {
      for (const std::int64_t width : {64, 128, 192}) {
        for (const std::int64_t tokens : {1, 7, 16, 17, 31, 33, 64}) {
          add({.out = 384,
               .in = 768,
               .block_height = height,
               .block_width = width,
               .density = 0.4,
               .tokens = tokens,
               .dtype = type,
               .gap = tokens % 2 * 8});
        }
      }
      for (const Fill fill : {Fill::power_law, Fill::one_full_row, Fill::empty}) {
        add({.out = 768,
             .in = 384,
             .block_height = height,
             .block_width = height,
             .density = 0.3,
             .tokens = 20,
             .dtype = type,
             .fill = fill});
      }
    }
    // More stages than the ring holds and than a warp looks up at once; outputs for a CTA each.
    for (const std::int64_t out : {64, 10240}) {
      for (const std::int64_t tokens : {16, 32, 64}) {
        add({.out = out,
             .in = out == 64 ? 10240 : 512,
             .block_height = 64,
             .block_width = 64,
             .density = 0.8,
             .tokens = tokens,
             .dtype = type});
      }
    }
  }
  return cases;
}

std::vector<SpmmCase> portable_cases() {
  std::vector<SpmmCase> cases;
  const char* kernel = "sm80_spmm";
  for (const auto& [type, tf32] : kArithmetic) {
    for (const std::int64_t height : {16, 32, 64, 128}) {
      for (const std::int64_t width : {16, 32, 64, 128}) {
        // .05: a line at a time; .4: low blocks in groups of lines.
        for (const double density : {0.05, 0.4}) {
          cases.push_back({{.out = 384,
                            .in = 640,
                            .block_height = height,
                            .block_width = width,
                            .density = density,
                            .tokens = 129,
                            .dtype = type,
                            .gap = 8,
                            .tf32 = tf32},
                           kernel});
        }
      }
      for (const std::int64_t tokens : {0, 1, 3, 127, 128, 1000}) {
        cases.push_back({{.out = 256,
                          .in = 384,
                          .block_height = height,
                          .block_width = height,
                          .density = 0.4,
                          .tokens = tokens,
                          .dtype = type,
                          .tf32 = tf32},
                         kernel});
      }
      for (const Fill fill : {Fill::power_law, Fill::one_full_row, Fill::empty}) {
        cases.push_back({{.out = 768,
                          .in = 256,
                          .block_height = height,
                          .block_width = height,
                          .density = 0.3,
                          .tokens = 300,
                          .dtype = type,
                          .fill = fill,
                          .spare_slots = 40,
                          .tf32 = tf32},
                         kernel});
      }
    }
    // Lines of more blocks than a window holds, groups with missing lines, both ways.
    for (const double density : {0.06, 0.9}) {
      cases.push_back({{.out = 80,
                        .in = 4800,
                        .block_height = 16,
                        .block_width = 16,
                        .density = density,
                        .tokens = 70,
                        .dtype = type,
                        .tf32 = tf32},
                       kernel});
    }
    // Several rounds of token tiles.
    cases.push_back({{.out = 96,
                      .in = 160,
                      .block_height = 32,
                      .block_width = 32,
                      .tokens = 4500,
                      .dtype = type,
                      .tf32 = tf32},
                     kernel});
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Generic, Spmm, testing::ValuesIn(generic_cases()));
INSTANTIATE_TEST_SUITE_P(Portable, Spmm, testing::ValuesIn(portable_cases()));
INSTANTIATE_TEST_SUITE_P(Sm90, Spmm, testing::ValuesIn(sm90_cases()));
INSTANTIATE_TEST_SUITE_P(Decode, Spmm, testing::ValuesIn(decode_cases()));
INSTANTIATE_TEST_SUITE_P(HopperDecode, Spmm, testing::ValuesIn(hopper_decode_cases()));

std::vector<SpmmCase> on_lists() {
  std::vector<SpmmCase> cases;
  for (const LayerCase& layer : lists_cases()) cases.push_back({layer, "sm90_lists"});
  return cases;
}
INSTANTIATE_TEST_SUITE_P(Lists, Spmm, testing::ValuesIn(on_lists()));

}  // namespace
}  // namespace block_sparse::cuda::test
