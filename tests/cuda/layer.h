// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "block_sparse/cuda.h"

/// Random block-sparse layers on the device, next to their products in double
/// on the host.
namespace block_sparse::cuda::test {

#define BLOCK_SPARSE_CUDA_OK(call)                                \
  do {                                                            \
    const cudaError_t error_ = (call);                            \
    ASSERT_EQ(error_, cudaSuccess) << cudaGetErrorString(error_); \
  } while (false)

/// Device memory; every byte starts as 0xff, which is NaN in all our types.
class DeviceBuffer {
 public:
  explicit DeviceBuffer(std::size_t bytes);
  template <class T>
  explicit DeviceBuffer(const std::vector<T>& host) : DeviceBuffer(host.size() * sizeof(T)) {
    upload(host.data(), host.size() * sizeof(T));
  }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  ~DeviceBuffer();

  void upload(const void* host, std::size_t bytes);
  std::vector<std::uint8_t> bytes() const;
  void* data() const { return data_; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  std::size_t size() const { return size_; }

 private:
  void* data_ = nullptr;
  std::size_t size_;
};

/// Rounds to the type and back.
double rounded(double value, DataType type);
std::vector<std::uint8_t> encoded(const std::vector<double>& values, DataType type);
std::vector<double> decoded(const std::vector<std::uint8_t>& bytes, DataType type);
/// Distance of 1 to the next number of the type.
double epsilon(DataType type);

enum class Fill { random, power_law, one_full_row, empty };

struct LayerCase {
  std::int64_t out = 128, in = 128, block_height = 64, block_width = 64;
  double density = 0.5;
  std::int64_t tokens = 128;
  DataType dtype = DataType::bf16;
  Fill fill = Fill::random;
  std::int64_t spare_slots = 3;
  std::int64_t gap = 0;  // elements between the rows of x and y beyond their features
  bool tf32 = false;     // expect products of operands rounded to TF32
};
std::string name_of_case(const LayerCase& c);
/// So that gtest prints a case by its name.
void PrintTo(const LayerCase& c, std::ostream* out);

/// A matrix (rows, cols) of doubles with, per element, the sum of the absolute
/// values of its terms, which bounds the rounding error of any order of summation.
struct Expected {
  std::vector<double> value, magnitude;
};

struct Layer {
  LayerCase c;
  std::mt19937_64 random;
  // The pattern, its values in slots, and the dense matrix they stand for.
  std::vector<std::int32_t> crow, col, ids, ccol, row, t_ids;
  std::vector<double> values, dense;
  std::vector<double> x, dy, bias;  // (tokens, in), (tokens, out), (out); no gaps

  Layer(const LayerCase& c, std::uint64_t seed);

  std::int64_t slots() const { return static_cast<std::int64_t>(ids.size()); }
  std::int64_t block_rows() const { return static_cast<std::int64_t>(crow.size()) - 1; }
  std::int64_t block_cols() const { return static_cast<std::int64_t>(ccol.size()) - 1; }

  Expected forward() const;         // (tokens, out), bias included
  Expected input_gradient() const;  // (tokens, in)
  Expected dense_gradient() const;  // (out, in)
};

/// The layer's index and operands on the device. Padding of blocks, spare
/// slots and gaps between rows are NaN.
struct DeviceLayer {
  DeviceBuffer crow, col, ids, ccol, row, t_ids, values, x, dy, bias, plan;
  PatternView pattern;
  std::int64_t ldx, ldy;

  explicit DeviceLayer(const Layer& layer, bool with_plan = true);
};

/// Of rows that are `stride` elements apart.
std::size_t bytes_of(std::int64_t rows, std::int64_t stride, DataType type);

/// The forward product with bias into y, and the input gradient into dx.
ForwardArgs forward_args(const Layer& l, const DeviceLayer& d, void* y);
InputGradientArgs input_gradient_args(const Layer& l, const DeviceLayer& d, void* dx);

/// (rows, cols) with a gap of NaN after each row, as bytes of the type.
std::vector<std::uint8_t> with_gaps(const std::vector<double>& matrix, std::int64_t rows,
                                    std::int64_t cols, std::int64_t gap, DataType type);

double activated(double v, Activation activation);

/// Each |got - want| <= lipschitz * error of `terms` f32 (f64) additions + one
/// rounding to the type; gaps must still hold 0xff.
void expect_close(const DeviceBuffer& got, DataType type, const Expected& want, std::int64_t rows,
                  std::int64_t cols, std::int64_t gap, std::int64_t terms, Activation activation,
                  DataType sum_type);

/// Sets BLOCK_SPARSE_FORCE while alive.
class Forced {
 public:
  explicit Forced(const std::string& name);
  ~Forced();
};

}  // namespace block_sparse::cuda::test
