// SPDX-License-Identifier: Apache-2.0
#include "layer.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <numeric>
#include <stdexcept>

namespace block_sparse::cuda::test {
namespace {

void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

template <class F>
auto with_type(DataType type, F&& f) {
  switch (type) {
    case DataType::f64:
      return f(double{});
    case DataType::f32:
      return f(float{});
    case DataType::bf16:
      return f(__nv_bfloat16{});
    default:
      return f(__half{});
  }
}

double to_double(double v) { return v; }
double to_double(float v) { return static_cast<double>(v); }
double to_double(__nv_bfloat16 v) { return static_cast<double>(__bfloat162float(v)); }
double to_double(__half v) { return static_cast<double>(__half2float(v)); }

void from_double(double v, double& out) { out = v; }
void from_double(double v, float& out) { out = static_cast<float>(v); }
void from_double(double v, __nv_bfloat16& out) { out = __double2bfloat16(v); }
void from_double(double v, __half& out) { out = __double2half(v); }

}  // namespace

DeviceBuffer::DeviceBuffer(std::size_t bytes) : size_(bytes) {
  check(cudaMalloc(&data_, std::max<std::size_t>(bytes, 1)));
  check(cudaMemset(data_, 0xff, bytes));
}
DeviceBuffer::~DeviceBuffer() { cudaFree(data_); }
void DeviceBuffer::upload(const void* host, std::size_t bytes) {
  check(cudaMemcpy(data_, host, bytes, cudaMemcpyHostToDevice));
}
std::vector<std::uint8_t> DeviceBuffer::bytes() const {
  std::vector<std::uint8_t> host(size_);
  check(cudaMemcpy(host.data(), data_, size_, cudaMemcpyDeviceToHost));
  return host;
}

double rounded(double value, DataType type) {
  return with_type(type, [&](auto element) {
    from_double(value, element);
    return to_double(element);
  });
}

std::vector<std::uint8_t> encoded(const std::vector<double>& values, DataType type) {
  std::vector<std::uint8_t> bytes(values.size() * size_of(type));
  with_type(type, [&](auto element) {
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (std::isnan(values[i])) {
        std::memset(&bytes[i * sizeof(element)], 0xff, sizeof(element));
      } else {
        from_double(values[i], element);
        std::memcpy(&bytes[i * sizeof(element)], &element, sizeof(element));
      }
    }
  });
  return bytes;
}

std::vector<double> decoded(const std::vector<std::uint8_t>& bytes, DataType type) {
  std::vector<double> values(bytes.size() / size_of(type));
  with_type(type, [&](auto element) {
    for (std::size_t i = 0; i < values.size(); ++i) {
      std::memcpy(&element, &bytes[i * sizeof(element)], sizeof(element));
      values[i] = to_double(element);
    }
  });
  return values;
}

double epsilon(DataType type) {
  switch (type) {
    case DataType::f64:
      return 0x1p-52;
    case DataType::f32:
      return 0x1p-23;
    case DataType::bf16:
      return 0x1p-7;
    default:
      return 0x1p-10;
  }
}

std::string name_of_case(const LayerCase& c) {
  static constexpr const char* kFills[] = {"random", "power_law", "one_full_row", "empty"};
  static constexpr const char* kTypes[] = {"f32", "f64", "bf16", "f16"};
  return std::to_string(c.in) + "to" + std::to_string(c.out) + "_b" +
         std::to_string(c.block_height) + "x" + std::to_string(c.block_width) + "_d" +
         std::to_string(std::lround(c.density * 100)) + "_T" + std::to_string(c.tokens) + "_" +
         (c.tf32 ? "tf32" : kTypes[static_cast<int>(c.dtype)]) + "_" +
         kFills[static_cast<int>(c.fill)] + "_gap" + std::to_string(c.gap);
}
void PrintTo(const LayerCase& c, std::ostream* out) { *out << name_of_case(c); }

Layer::Layer(const LayerCase& layer_case, std::uint64_t seed) : c(layer_case), random(seed) {
  const std::int64_t rows = (c.out + c.block_height - 1) / c.block_height;
  const std::int64_t cols = (c.in + c.block_width - 1) / c.block_width;
  std::uniform_real_distribution<double> uniform(0, 1);
  std::normal_distribution<double> normal(0, 1);

  std::vector<std::vector<std::int32_t>> columns(static_cast<std::size_t>(cols));
  crow.push_back(0);
  for (std::int64_t r = 0; r < rows; ++r) {
    double p = c.density;
    if (c.fill == Fill::power_law) {
      p = std::min(1.0, c.density * static_cast<double>(rows) / 4 / static_cast<double>(r + 1));
    }
    if (c.fill == Fill::one_full_row) p = r == rows / 2 ? 1 : 0;
    if (c.fill == Fill::empty) p = 0;
    for (std::int64_t k = 0; k < cols; ++k) {
      if (uniform(random) < p) col.push_back(static_cast<std::int32_t>(k));
    }
    crow.push_back(static_cast<std::int32_t>(col.size()));
  }
  const std::size_t n = col.size();
  col.resize(n + static_cast<std::size_t>(c.spare_slots));
  ids.resize(col.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::shuffle(ids.begin(), ids.end(), random);
  std::sort(ids.begin() + static_cast<std::ptrdiff_t>(n), ids.end());

  const std::int64_t block = c.block_height * c.block_width;
  values.assign(ids.size() * static_cast<std::size_t>(block), std::nan(""));
  dense.assign(static_cast<std::size_t>(c.out * c.in), 0);
  std::vector<std::vector<std::pair<std::int32_t, std::int32_t>>> by_column(
      static_cast<std::size_t>(cols));
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int32_t i = crow[static_cast<std::size_t>(r)];
         i < crow[static_cast<std::size_t>(r + 1)]; ++i) {
      const std::int64_t k = col[static_cast<std::size_t>(i)];
      const std::int32_t slot = ids[static_cast<std::size_t>(i)];
      by_column[static_cast<std::size_t>(k)].emplace_back(static_cast<std::int32_t>(r), slot);
      for (std::int64_t m = 0; m < c.block_height && r * c.block_height + m < c.out; ++m) {
        for (std::int64_t j = 0; j < c.block_width && k * c.block_width + j < c.in; ++j) {
          const double v = rounded(normal(random), c.dtype);
          values[static_cast<std::size_t>(slot * block + m * c.block_width + j)] = v;
          dense[static_cast<std::size_t>((r * c.block_height + m) * c.in + k * c.block_width + j)] =
              v;
        }
      }
    }
  }
  ccol.push_back(0);
  for (const auto& entries : by_column) {
    for (const auto& [r, slot] : entries) {
      row.push_back(r);
      t_ids.push_back(slot);
    }
    ccol.push_back(static_cast<std::int32_t>(row.size()));
  }
  row.resize(ids.size());
  t_ids.resize(ids.size());

  const auto draw = [&](std::int64_t count) {
    std::vector<double> v(static_cast<std::size_t>(count));
    for (double& e : v) e = rounded(normal(random), c.dtype);
    return v;
  };
  x = draw(c.tokens * c.in);
  dy = draw(c.tokens * c.out);
  bias = draw(c.out);
}

namespace {

/// a (n, k) times b (m, k) transposed.
Expected product(const std::vector<double>& a, const std::vector<double>& b, std::int64_t n,
                 std::int64_t m, std::int64_t k) {
  Expected e;
  e.value.assign(static_cast<std::size_t>(n * m), 0);
  e.magnitude = e.value;
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j < m; ++j) {
      double sum = 0, magnitude = 0;
      const double* pa = a.data() + i * k;
      const double* pb = b.data() + j * k;
      for (std::int64_t l = 0; l < k; ++l) {
        sum += pa[l] * pb[l];
        magnitude += std::fabs(pa[l] * pb[l]);
      }
      e.value[static_cast<std::size_t>(i * m + j)] = sum;
      e.magnitude[static_cast<std::size_t>(i * m + j)] = magnitude;
    }
  }
  return e;
}

std::vector<double> transposed(const std::vector<double>& a, std::int64_t rows, std::int64_t cols) {
  std::vector<double> t(a.size());
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t k = 0; k < cols; ++k) {
      t[static_cast<std::size_t>(k * rows + r)] = a[static_cast<std::size_t>(r * cols + k)];
    }
  }
  return t;
}

}  // namespace

namespace {

/// The numbers as the product sees them: TF32 keeps 10 bits of a fraction, ties
/// go away from zero.
std::vector<double> seen(std::vector<double> values, bool tf32) {
  if (!tf32) return values;
  for (double& v : values) {
    const auto bits = std::bit_cast<std::uint32_t>(static_cast<float>(v));
    v = static_cast<double>(std::bit_cast<float>((bits + 0x1000u) & 0xffffe000u));
  }
  return values;
}

}  // namespace

Expected Layer::forward() const {
  Expected e = product(seen(x, c.tf32), seen(dense, c.tf32), c.tokens, c.out, c.in);
  for (std::size_t i = 0; i < e.value.size(); ++i) {
    const double b = bias[i % static_cast<std::size_t>(c.out)];
    e.value[i] += b;
    e.magnitude[i] += std::fabs(b);
  }
  return e;
}
Expected Layer::input_gradient() const {
  return product(seen(dy, c.tf32), transposed(seen(dense, c.tf32), c.out, c.in), c.tokens, c.in,
                 c.out);
}
Expected Layer::dense_gradient() const {
  return product(transposed(seen(dy, c.tf32), c.tokens, c.out),
                 transposed(seen(x, c.tf32), c.tokens, c.in), c.out, c.in, c.tokens);
}

std::vector<std::uint8_t> with_gaps(const std::vector<double>& matrix, std::int64_t rows,
                                    std::int64_t cols, std::int64_t gap, DataType type) {
  std::vector<double> wide(static_cast<std::size_t>(rows * (cols + gap)), std::nan(""));
  for (std::int64_t r = 0; r < rows; ++r) {
    std::copy_n(matrix.begin() + r * cols, cols, wide.begin() + r * (cols + gap));
  }
  return encoded(wide, type);
}

namespace {

/// Its extents alone.
PatternView pattern_of(const Layer& l) {
  PatternView p;
  p.rows = l.c.out;
  p.cols = l.c.in;
  p.block_height = l.c.block_height;
  p.block_width = l.c.block_width;
  p.slots = l.slots();
  return p;
}

}  // namespace

DeviceLayer::DeviceLayer(const Layer& l, bool with_plan)
    : crow(l.crow),
      col(l.col),
      ids(l.ids),
      ccol(l.ccol),
      row(l.row),
      t_ids(l.t_ids),
      values(encoded(l.values, l.c.dtype)),
      x(with_gaps(l.x, l.c.tokens, l.c.in, l.c.gap, l.c.dtype)),
      dy(with_gaps(l.dy, l.c.tokens, l.c.out, l.c.gap, l.c.dtype)),
      bias(encoded(l.bias, l.c.dtype)),
      plan(static_cast<std::size_t>(plan_size(pattern_of(l))) * sizeof(std::int32_t)),
      ldx(l.c.in + l.c.gap),
      ldy(l.c.out + l.c.gap) {
  pattern = pattern_of(l);
  pattern.crow_indices = crow.as<std::int32_t>();
  pattern.col_indices = col.as<std::int32_t>();
  pattern.block_ids = ids.as<std::int32_t>();
  pattern.ccol_indices = ccol.as<std::int32_t>();
  pattern.row_indices = row.as<std::int32_t>();
  pattern.t_block_ids = t_ids.as<std::int32_t>();
  if (with_plan) {
    const Status s = build_plan(pattern, plan.as<std::int32_t>(), nullptr);
    if (!s.ok()) throw std::runtime_error(s.message());
  }
}

double activated(double v, Activation activation) {
  switch (activation) {
    case Activation::relu:
      return std::max(v, 0.0);
    case Activation::gelu:
      return 0.5 * v * (1 + std::erf(v / std::sqrt(2.0)));
    case Activation::gelu_tanh:
      return 0.5 * v * (1 + std::tanh(std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v)));
    case Activation::silu:
      return v / (1 + std::exp(-v));
    default:
      return v;
  }
}

void expect_close(const DeviceBuffer& buffer, DataType type, const Expected& want,
                  std::int64_t rows, std::int64_t cols, std::int64_t gap, std::int64_t terms,
                  Activation activation, DataType sum_type) {
  const std::vector<std::uint8_t> bytes = buffer.bytes();
  const std::vector<double> got = decoded(bytes, type);
  ASSERT_EQ(got.size(), static_cast<std::size_t>(rows * (cols + gap)));
  // The slope of our activations stays below 1.13; evaluating one in f32 costs
  // a few roundings of a value no larger than its argument.
  const double slope = activation == Activation::none ? 1 : 1.13;
  const double evaluate = activation == Activation::none ? 0 : 8;
  std::int64_t wrong = 0;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t k = 0; k < cols + gap; ++k) {
      const auto at = static_cast<std::size_t>(r * (cols + gap) + k);
      if (k >= cols) {
        for (std::size_t b = 0; b < size_of(type); ++b) {
          ASSERT_EQ(bytes[at * size_of(type) + b], 0xff) << "gap of row " << r << " was written";
        }
        continue;
      }
      const auto i = static_cast<std::size_t>(r * cols + k);
      const double value = activated(want.value[i], activation);
      const double unit = epsilon(sum_type) / 2;
      const double bound =
          slope * static_cast<double>(terms + 2) * unit * want.magnitude[i] +
          evaluate * unit * std::fabs(want.value[i]) +
          epsilon(type) / 2 *
              (std::fabs(value) + slope * static_cast<double>(terms) * unit * want.magnitude[i]) +
          (type == DataType::f16 ? 0x1p-25 : 1e-40);  // half a subnormal step
      if (!(std::fabs(got[at] - value) <= bound)) {
        if (++wrong <= 5) {
          ADD_FAILURE() << "(" << r << ", " << k << "): got " << got[at] << ", expected " << value
                        << " within " << bound;
        }
      }
    }
  }
  EXPECT_EQ(wrong, 0) << "elements of " << rows * cols << " are wrong";
}

ForwardArgs forward_args(const Layer& l, const DeviceLayer& d, void* y) {
  ForwardArgs a;
  a.dtype = l.c.dtype;
  a.allow_tf32 = l.c.tf32;
  a.pattern = d.pattern;
  a.plan = d.plan.as<std::int32_t>();
  a.tokens = l.c.tokens;
  a.x = d.x.data();
  a.ldx = d.ldx;
  a.values = d.values.data();
  a.bias = d.bias.data();
  a.y = y;
  a.ldy = d.ldy;
  return a;
}

InputGradientArgs input_gradient_args(const Layer& l, const DeviceLayer& d, void* dx) {
  InputGradientArgs a;
  a.dtype = l.c.dtype;
  a.allow_tf32 = l.c.tf32;
  a.pattern = d.pattern;
  a.plan = d.plan.as<std::int32_t>();
  a.tokens = l.c.tokens;
  a.dy = d.dy.data();
  a.lddy = d.ldy;
  a.values = d.values.data();
  a.dx = dx;
  a.lddx = d.ldx;
  return a;
}

std::size_t bytes_of(std::int64_t rows, std::int64_t stride, DataType type) {
  return static_cast<std::size_t>(rows * stride) * size_of(type);
}

Forced::Forced(const std::string& name) {
  if (!name.empty()) setenv("BLOCK_SPARSE_FORCE", name.c_str(), 1);
}
Forced::~Forced() { unsetenv("BLOCK_SPARSE_FORCE"); }

}  // namespace block_sparse::cuda::test
