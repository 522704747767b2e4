// SPDX-License-Identifier: Apache-2.0
#include "arguments.h"

#include <array>
#include <numeric>

namespace block_sparse::torch_ops {

namespace {

constexpr std::array<const char*, n_index_parts> index_names = {
    "crow_indices", "col_indices", "block_ids", "ccol_indices",
    "row_indices",  "t_block_ids", "plan"};

constexpr std::array activations = {Activation::none, Activation::relu, Activation::gelu,
                                    Activation::gelu_tanh, Activation::silu};

std::string shape_of(const std::int64_t* sizes, std::int64_t dims) {
  std::string text = "(";
  for (std::int64_t i = 0; i < dims; ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(sizes[i]);
  }
  return text + (dims == 1 ? ",)" : ")");
}

std::int64_t aligned(std::int64_t length) {
  return (length + index_alignment - 1) / index_alignment * index_alignment;
}

/// Elements of an index in one tensor that come before its plan.
std::int64_t packed_length(const PatternView& pattern) {
  return aligned(pattern.n_block_rows() + 1) + aligned(pattern.n_block_cols() + 1) +
         4 * aligned(pattern.slots);
}

/// As Python spells it, for the dtypes that people pass.
const char* name_of_dtype(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    default:
      return torch::headeronly::toString(type);
  }
}

std::optional<DataType> data_type_from(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return DataType::f32;
    case ScalarType::Double:
      return DataType::f64;
    case ScalarType::BFloat16:
      return DataType::bf16;
    case ScalarType::Half:
      return DataType::f16;
    default:
      return std::nullopt;
  }
}

/// The stride that reaches every row of `tensor`, or nothing if there is none
/// or rows overlap (a backend may load past the end of a short row stride).
std::optional<std::int64_t> row_stride_of(const Tensor& tensor, std::int64_t features) {
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  const std::size_t last = sizes.size() - 1;
  if (features > 1 && strides[last] != 1) return std::nullopt;
  std::optional<std::int64_t> stride;  // of the innermost dimension with more than one row
  std::int64_t expected = 0;           // of the next one, going outwards
  for (std::size_t i = last; i-- > 0;) {
    if (sizes[i] == 1) continue;
    if (!stride) {
      stride = strides[i];
    } else if (strides[i] != expected) {
      return std::nullopt;
    }
    expected = strides[i] * sizes[i];
  }
  if (stride && *stride < features) return std::nullopt;  // rows overlap: expand, unfold
  return stride.value_or(features);
}

}  // namespace

std::string shape_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return shape_of(sizes.data(), static_cast<std::int64_t>(sizes.size()));
}

Activation activation_from(std::string_view name) {
  for (const Activation activation : activations) {
    if (name == name_of(activation)) return activation;
  }
  fail("activation is '", name, "'; expected 'none', 'relu', 'gelu', 'gelu_tanh' or 'silu'");
}

DataType data_type_of(const Tensor& tensor, const char* name) {
  const ScalarType type = tensor.scalar_type();
  if (const auto data_type = data_type_from(type)) return *data_type;
  fail(name, " has dtype ", name_of_dtype(type),
       "; expected float32, float64, bfloat16 or float16");
}

ScalarType scalar_type_of(DataType type) {
  switch (type) {
    case DataType::f64:
      return ScalarType::Double;
    case DataType::bf16:
      return ScalarType::BFloat16;
    case DataType::f16:
      return ScalarType::Half;
    default:
      return ScalarType::Float;
  }
}

void check_same_dtype(const Tensor& tensor, const char* name, DataType type,
                      const char* reference) {
  const ScalarType expected = scalar_type_of(type);
  const ScalarType found = tensor.scalar_type();
  if (found != expected) {
    fail(name, " has dtype ", name_of_dtype(found), ", ", reference, " has ",
         name_of_dtype(expected), "; expected the same");
  }
}

Rows::Rows(const Tensor& source, const char* name) : tensor(source) {
  const auto sizes = tensor.sizes();
  if (sizes.size() == 0) fail(name, " has no dimension; expected (..., features)");
  features = sizes[sizes.size() - 1];
  tokens = 1;
  for (std::size_t i = 0; i + 1 < sizes.size(); ++i) tokens *= sizes[i];
  if (const auto found = row_stride_of(tensor, features)) {
    stride = *found;
  } else {
    tensor = torch::stable::contiguous(tensor);
    stride = features;
  }
  data = tensor.const_data_ptr();
}

const std::int32_t* index_data(const Tensor& tensor, const char* name, std::int64_t length) {
  const ScalarType type = tensor.scalar_type();
  if (type != ScalarType::Int) {
    fail(name, " has dtype ", name_of_dtype(type), "; expected int32");
  }
  if (tensor.dim() != 1) fail(name, " has shape ", shape_of(tensor), "; expected one dimension");
  if (length >= 0 && tensor.numel() != length) {
    fail(name, " has shape ", shape_of(tensor), "; expected (", length, ",)");
  }
  if (!tensor.is_contiguous()) fail(name, " is not contiguous; call contiguous() on it first");
  return static_cast<const std::int32_t*>(tensor.const_data_ptr());
}

void check_block_shape(std::int64_t block_height, std::int64_t block_width) {
  if (block_height < 1 || block_width < 1) {
    fail("the block shape is (", block_height, ", ", block_width,
         "); expected sides of at least 1");
  }
}

PatternView pattern_from(const std::vector<Tensor>& index, std::int64_t rows, std::int64_t cols,
                         std::int64_t block_height, std::int64_t block_width, std::int64_t slots) {
  if (index.size() != n_index_parts && index.size() != 1) {
    fail("index has ", index.size(),
         " tensors; expected 7: [crow_indices, col_indices, "
         "block_ids, ccol_indices, row_indices, t_block_ids, plan]");
  }
  check_block_shape(block_height, block_width);
  PatternView pattern;
  pattern.rows = rows;
  pattern.cols = cols;
  pattern.block_height = block_height;
  pattern.block_width = block_width;
  pattern.slots = slots;
  const std::int32_t* packed = nullptr;
  if (index.size() == 1) {
    packed = index_data(index[0], "index", -1);
    if (index[0].numel() < packed_length(pattern)) {
      fail("index has shape ", shape_of(index[0]), "; expected at least ", packed_length(pattern),
           " elements for ", slots, " slots in ", pattern.n_block_rows(), " x ",
           pattern.n_block_cols(), " blocks");
    }
  }
  const auto data = [&](IndexPart part, std::int64_t length) {
    if (packed == nullptr) return index_data(index[part], index_names[part], length);
    return std::exchange(packed, packed + aligned(length));
  };
  pattern.crow_indices = data(crow_indices, pattern.n_block_rows() + 1);
  pattern.col_indices = data(col_indices, slots);
  pattern.block_ids = data(block_ids, slots);
  pattern.ccol_indices = data(ccol_indices, pattern.n_block_cols() + 1);
  pattern.row_indices = data(row_indices, slots);
  pattern.t_block_ids = data(t_block_ids, slots);
  return pattern;
}

const std::int32_t* plan_from(const std::vector<Tensor>& index, const PatternView& pattern,
                              std::int64_t length) {
  if (index.size() == 1) {
    const std::int64_t before = packed_length(pattern);
    if (index[0].numel() - before != length) return nullptr;
    return static_cast<const std::int32_t*>(index[0].const_data_ptr()) + before;
  }
  return index[plan].numel() == length ? index_data(index[plan], "plan", length) : nullptr;
}

PatternView pattern_of_blocks(const Tensor& crow, const Tensor& col, const Tensor& ids,
                              std::int64_t slots, std::int64_t block_cols) {
  PatternView pattern;
  pattern.crow_indices = index_data(crow, "crow_indices", -1);
  pattern.rows = crow.numel() - 1;
  if (pattern.rows < 0)
    fail("crow_indices is empty; expected one entry per block row and one more");
  if (slots < 0) fail("slots is ", slots, "; expected at least 0");
  if (block_cols < 0) fail("block_cols is ", block_cols, "; expected at least 0");
  pattern.cols = block_cols;
  pattern.slots = slots;
  pattern.col_indices = index_data(col, "col_indices", slots);
  pattern.block_ids = index_data(ids, "block_ids", slots);
  return pattern;
}

Tensor empty(const Tensor& like, const std::int64_t* sizes, std::int64_t dims, ScalarType type) {
  // The shim itself: torch::stable::new_empty boxes six arguments for the
  // dispatcher, which costs more than the allocation.
  std::vector<std::int64_t> strides(static_cast<std::size_t>(dims));
  std::int64_t stride = 1;
  for (std::size_t i = strides.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= sizes[i] > 0 ? sizes[i] : 1;
  }
  std::int32_t device_type = 0;
  std::int32_t device_index = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  const auto dtype = torch::stable::detail::to<std::int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle handle = nullptr;
  if (aoti_torch_empty_strided(dims, sizes, strides.data(), dtype, device_type, device_index,
                               &handle) != AOTI_TORCH_SUCCESS) {
    // Libraries that try again with less look for these words of torch's own.
    fail(device_type == aoti_torch_device_type_cuda() ? "CUDA out of memory. " : "Out of memory. ",
         "Tried to allocate a tensor of shape ", shape_of(sizes, dims));
  }
  return Tensor(handle);
}

Tensor empty_rows(const Tensor& like, std::int64_t features) {
  const auto sizes = like.sizes();
  std::vector<std::int64_t> shape(sizes.begin(), sizes.end());
  shape.back() = features;
  return empty(like, shape.data(), static_cast<std::int64_t>(shape.size()), like.scalar_type());
}

Tensor sum_of_rows(const Rows& rows, ScalarType type) {
  std::vector<std::int64_t> dims(static_cast<std::size_t>(rows.tensor.dim() - 1));
  std::iota(dims.begin(), dims.end(), 0);
  // A tensor without dimensions to sum over would be summed whole.
  if (dims.empty()) return torch::stable::to(rows.tensor, type);
  return torch::stable::sum(rows.tensor, dims, /*keepdim=*/false, type);
}

Tensor undefined() {
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_new_uninitialized_tensor(&handle));
  return Tensor(handle);
}

}  // namespace block_sparse::torch_ops
