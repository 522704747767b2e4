// SPDX-License-Identifier: Apache-2.0
// Times the products of block-sparse layers against cuBLAS's dense ones.
//
// Usage: block_sparse_cuda_bench [--json FILE] [--date DATE] [--dtype bf16|f16|tf32|f32]
//          [--products fwd,igrad,wgrad,norms] [--blocks 128,32x64,...] [--densities .5,...]
//          [--shapes INxOUTxT,...] [--force KERNEL]
//
// Method: random patterns, normal-like data; each call is captured 10 to 200
// times in a CUDA graph over rotating operands of more than 300 MB in all, so
// that L2 is as cold as between the layers of a model; graphs of the sparse and
// the dense product alternate, the medians of 7 are reported. Each sparse result
// is first compared with the dense product of the same matrix.
#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "block_sparse/cuda.h"
#include "check.h"

namespace {

using namespace block_sparse;
using std::int32_t;
using std::int64_t;

void require(const Status& s) {
  if (s.ok()) return;
  std::fprintf(stderr, "%s\n", s.message().c_str());
  std::exit(1);
}

__device__ void store(__nv_bfloat16* to, float v) { *to = __float2bfloat16(v); }
__device__ void store(__half* to, float v) { *to = __float2half(v); }
__device__ void store(float* to, float v) { *to = v; }
__device__ float load(const float* p) { return *p; }
__device__ float load(const __nv_bfloat16* p) { return __bfloat162float(*p); }
__device__ float load(const __half* p) { return __half2float(*p); }

/// Sums of four uniform numbers from a hash of the index: close to normal.
template <class T>
__global__ void fill_random(T* data, int64_t n, unsigned long long seed) {
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < n;
       i += int64_t(gridDim.x) * blockDim.x) {
    unsigned long long z = (static_cast<unsigned long long>(i) + seed) * 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    z ^= z >> 31;
    float sum = 0;
    for (int k = 0; k < 4; ++k) sum += static_cast<float>((z >> (16 * k)) & 0xffff) / 65536.f - .5f;
    store(data + i, sum);
  }
}

/// dense (out, in) = the matrix that the blocks stand for; zero elsewhere before.
template <class T>
__global__ void densify(const T* values, const int32_t* rows, const int32_t* cols,
                        const int32_t* ids, int bh, int bw, int64_t in, T* dense) {
  const int i = blockIdx.x;
  for (int e = threadIdx.x; e < bh * bw; e += blockDim.x) {
    dense[(int64_t(rows[i]) * bh + e / bw) * in + int64_t(cols[i]) * bw + e % bw] =
        values[int64_t(ids[i]) * bh * bw + e];
  }
}

/// sums[0] += squared differences, sums[1] += squares of the reference.
template <class T>
__global__ void compare(const T* got, const T* want, int64_t n, double* sums) {
  double difference = 0, square = 0;
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < n;
       i += int64_t(gridDim.x) * blockDim.x) {
    const double w = load(want + i);
    const double d = load(got + i) - w;
    difference += d * d;
    square += w * w;
  }
  atomicAdd(&sums[0], difference);
  atomicAdd(&sums[1], square);
}
template <class T>
__global__ void compare_blocks(const T* got, const T* dense, const int32_t* rows,
                               const int32_t* cols, const int32_t* ids, int bh, int bw, int64_t in,
                               double* sums) {
  const int i = blockIdx.x;
  double difference = 0, square = 0;
  for (int e = threadIdx.x; e < bh * bw; e += blockDim.x) {
    const double w =
        load(dense + (int64_t(rows[i]) * bh + e / bw) * in + int64_t(cols[i]) * bw + e % bw);
    const double d = load(got + int64_t(ids[i]) * bh * bw + e) - w;
    difference += d * d;
    square += w * w;
  }
  atomicAdd(&sums[0], difference);
  atomicAdd(&sums[1], square);
}

/// The same of got (block rows, block columns) against the norms of the blocks of
/// dense; a CTA a block.
template <class T>
__global__ void compare_norms(const float* got, const T* dense, int bh, int bw, int64_t in,
                              double* sums) {
  const int64_t block_cols = in / bw;
  const int64_t row = blockIdx.x / block_cols * bh;
  const int64_t col = blockIdx.x % block_cols * bw;
  __shared__ double squares;
  if (threadIdx.x == 0) squares = 0;
  __syncthreads();
  double mine = 0;
  for (int e = threadIdx.x; e < bh * bw; e += blockDim.x) {
    const double w = load(dense + (row + e / bw) * in + col + e % bw);
    mine += w * w;
  }
  atomicAdd(&squares, mine);
  __syncthreads();
  if (threadIdx.x != 0) return;
  const double difference = got[blockIdx.x] - sqrt(squares);
  atomicAdd(&sums[0], difference * difference);
  atomicAdd(&sums[1], squares);
}

template <class T>
T* device_array(int64_t n) {
  void* p = nullptr;
  CHECK(cudaMalloc(&p, static_cast<std::size_t>(std::max<int64_t>(n, 1)) * sizeof(T)));
  CHECK(cudaMemset(p, 0xff, static_cast<std::size_t>(n) * sizeof(T)));
  return static_cast<T*>(p);
}
template <class T>
T* uploaded(const std::vector<T>& host) {
  T* p = device_array<T>(static_cast<int64_t>(host.size()));
  CHECK(cudaMemcpy(p, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
  return p;
}

/// A random pattern with exactly round(density * blocks) blocks.
struct Pattern {
  std::vector<int32_t> crow{0}, rows, cols, ids, ccol{0}, t_rows, t_ids;
  Pattern(int64_t block_rows, int64_t block_cols, double density) {
    std::mt19937 random(7);
    const auto total = static_cast<std::size_t>(block_rows * block_cols);
    std::vector<char> stored(total, 0);
    std::fill_n(stored.begin(), std::lround(density * static_cast<double>(total)), 1);
    std::shuffle(stored.begin(), stored.end(), random);
    for (int64_t r = 0; r < block_rows; ++r) {
      for (int64_t c = 0; c < block_cols; ++c) {
        if (!stored[static_cast<std::size_t>(r * block_cols + c)]) continue;
        rows.push_back(static_cast<int32_t>(r));
        cols.push_back(static_cast<int32_t>(c));
        ids.push_back(static_cast<int32_t>(ids.size()));
      }
      crow.push_back(static_cast<int32_t>(cols.size()));
    }
    std::vector<std::vector<int32_t>> columns(static_cast<std::size_t>(block_cols));
    for (std::size_t i = 0; i < cols.size(); ++i) {
      columns[static_cast<std::size_t>(cols[i])].push_back(static_cast<int32_t>(i));
    }
    for (const auto& column : columns) {
      for (const int32_t i : column) {
        t_rows.push_back(rows[static_cast<std::size_t>(i)]);
        t_ids.push_back(ids[static_cast<std::size_t>(i)]);
      }
      ccol.push_back(static_cast<int32_t>(t_rows.size()));
    }
  }
};

cudaGraphExec_t captured(cudaStream_t stream, int calls, const std::function<void(int)>& call) {
  cudaGraph_t graph = nullptr;
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  for (int i = 0; i < calls; ++i) call(i);
  CHECK(cudaStreamEndCapture(stream, &graph));
  cudaGraphExec_t exec = nullptr;
  CHECK(cudaGraphInstantiate(&exec, graph, 0));
  CHECK(cudaGraphDestroy(graph));
  return exec;
}

double elapsed_us(cudaStream_t stream, const std::function<void()>& work) {
  static cudaEvent_t begin = nullptr, end = nullptr;
  if (begin == nullptr) {
    CHECK(cudaEventCreate(&begin));
    CHECK(cudaEventCreate(&end));
  }
  CHECK(cudaEventRecord(begin, stream));
  work();
  CHECK(cudaEventRecord(end, stream));
  CHECK(cudaEventSynchronize(end));
  float ms = 0;
  CHECK(cudaEventElapsedTime(&ms, begin, end));
  return static_cast<double>(ms) * 1e3;
}

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v[v.size() / 2];
}

/// Microseconds a call of each, the two alternating.
std::pair<double, double> time_pair(cudaStream_t stream, const std::function<void(int)>& sparse,
                                    const std::function<void(int)>& dense) {
  const std::function<void(int)>* both[2] = {&sparse, &dense};
  cudaGraphExec_t graphs[2];
  int calls[2];
  for (int i = 0; i < 2; ++i) {
    (*both[i])(0);
    const double once = elapsed_us(stream, [&] { (*both[i])(0); });
    calls[i] = static_cast<int>(std::clamp(4000.0 / once, 10.0, 200.0));
    graphs[i] = captured(stream, calls[i], *both[i]);
  }
  std::vector<double> us[2];
  for (int repeat = 0; repeat < 8; ++repeat) {
    for (int i = 0; i < 2; ++i) {
      const double t = elapsed_us(stream, [&] { CHECK(cudaGraphLaunch(graphs[i], stream)); });
      if (repeat > 0) us[i].push_back(t / calls[i]);
    }
  }
  for (cudaGraphExec_t g : graphs) CHECK(cudaGraphExecDestroy(g));
  return {median(us[0]), median(us[1])};
}

/// Ratios to the dense product that are aimed at, for 4096x14336 and 4096x4096
/// at densities .5, .25, .1, .05.
double goal(int64_t out, int64_t block, double density) {
  static constexpr double kDensities[4] = {.5, .25, .1, .05};
  static constexpr double kWide[4][4] = {
      {1.85, 3.6, 8.5, 11}, {1.7, 3.2, 6.5, 9}, {1.4, 2.6, 5, 7.5}, {.95, 1.7, 3, 4.5}};
  static constexpr double kSquare[3][4] = {
      {1.7, 3.2, 5.5, 6}, {1.6, 2.9, 5, 5.5}, {1.3, 2.3, 4, 4.5}};
  const int row = block == 128 ? 0 : block == 64 ? 1 : block == 32 ? 2 : 3;
  for (int i = 0; i < 4; ++i) {
    if (std::fabs(density - kDensities[i]) > 1e-6) continue;
    if (out == 14336) return kWide[row][i];
    if (out == 4096 && row < 3) return kSquare[row][i];
  }
  return 0;
}

struct Options {
  std::string json, date = "unknown", dtype = "bf16", force;
  std::vector<std::string> products{"fwd", "igrad", "wgrad"};
  std::vector<std::string> blocks{"128", "64", "32", "16"};
  std::vector<std::string> densities{".5", ".25", ".1", ".05"};
  std::vector<std::string> shapes{"4096x14336x8192", "4096x4096x8192", "768x3072x8192"};
};

std::vector<std::string> split(const std::string& text, char at) {
  std::vector<std::string> parts;
  std::stringstream stream(text);
  for (std::string part; std::getline(stream, part, at);) parts.push_back(part);
  return parts;
}

class Bench {
 public:
  Bench(const Options& options, std::string command)
      : o_(options), command_(std::move(command)), tf32_(options.dtype == "tf32") {
    CHECK(cudaStreamCreate(&stream_));
    CHECK(cublasCreate(&cublas_));
    CHECK(cublasSetStream(cublas_, stream_));
    void* workspace = device_array<char>(64 << 20);
    CHECK(cublasSetWorkspace(cublas_, workspace, 64 << 20));
    sums_ = device_array<double>(2);
    CHECK(cudaMemset(sums_, 0, 2 * sizeof(double)));
  }

  template <class T>
  void run() {
    measure_copy();
    std::printf("%-18s %-6s %7s %7s %6s %9s %8s %9s %7s %6s %9s  %s\n", "shape", "op", "block",
                "density", "T", "us", "TFLOP/s", "dense us", "ratio", "goal", "roofline", "kernel");
    for (const std::string& shape : o_.shapes) {
      const std::vector<std::string> sides = split(shape, 'x');
      for (const std::string& block : o_.blocks) {
        for (const std::string& density : o_.densities) {
          const std::vector<std::string> block_sides = split(block, 'x');
          measure<T>(std::stoll(sides[0]), std::stoll(sides[1]), std::stoll(sides[2]),
                     std::stoll(block_sides.front()), std::stoll(block_sides.back()),
                     std::stod(density));
        }
      }
    }
    write_json();
  }

 private:
  void measure_copy() {
    const std::size_t bytes = std::size_t(1) << 30;
    char* a = device_array<char>(static_cast<int64_t>(bytes));
    char* b = device_array<char>(static_cast<int64_t>(bytes));
    std::vector<double> us;
    for (int i = 0; i < 8; ++i) {
      us.push_back(elapsed_us(stream_, [&] {
        CHECK(cudaMemcpyAsync(b, a, bytes, cudaMemcpyDeviceToDevice, stream_));
      }));
    }
    copy_bytes_per_us_ = 2 * static_cast<double>(bytes) / median(us);
    CHECK(cudaFree(a));
    CHECK(cudaFree(b));
    std::printf("copy %.2f TB/s\n", copy_bytes_per_us_ * 1e-6);
  }

  template <class T>
  void gemm(cublasOperation_t ta, cublasOperation_t tb, int64_t m, int64_t n, int64_t k,
            const void* a, int64_t lda, const void* b, int64_t ldb, void* c) {
    constexpr cudaDataType type = std::is_same_v<T, float>    ? CUDA_R_32F
                                  : std::is_same_v<T, __half> ? CUDA_R_16F
                                                              : CUDA_R_16BF;
    const float one = 1, zero = 0;
    CHECK(cublasGemmEx(cublas_, ta, tb, static_cast<int>(m), static_cast<int>(n),
                       static_cast<int>(k), &one, a, type, static_cast<int>(lda), b, type,
                       static_cast<int>(ldb), &zero, c, type, static_cast<int>(m),
                       tf32_ ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F,
                       CUBLAS_GEMM_DEFAULT));
  }

  double relative_error() {
    double sums[2];
    CHECK(cudaStreamSynchronize(stream_));
    CHECK(cudaMemcpy(sums, sums_, sizeof(sums), cudaMemcpyDeviceToHost));
    CHECK(cudaMemset(sums_, 0, sizeof(sums)));
    return std::sqrt(sums[0] / std::max(sums[1], 1e-300));
  }

  template <class T>
  void measure(int64_t in, int64_t out, int64_t tokens, int64_t bh, int64_t bw, double density) {
    if (in % bw != 0 || out % bh != 0) return;
    constexpr DataType type = std::is_same_v<T, float>    ? DataType::f32
                              : std::is_same_v<T, __half> ? DataType::f16
                                                          : DataType::bf16;
    const Pattern pattern(out / bh, in / bw, density);
    const auto blocks = static_cast<int64_t>(pattern.ids.size());
    if (blocks == 0) return;
    const double true_density =
        static_cast<double>(blocks * bh * bw) / static_cast<double>(in * out);
    int32_t* rows = uploaded(pattern.rows);
    int32_t* cols = uploaded(pattern.cols);
    int32_t* ids = uploaded(pattern.ids);
    PatternView view;
    view.rows = out;
    view.cols = in;
    view.block_height = bh;
    view.block_width = bw;
    view.slots = blocks;
    view.crow_indices = uploaded(pattern.crow);
    view.col_indices = cols;
    view.block_ids = ids;
    view.ccol_indices = uploaded(pattern.ccol);
    view.row_indices = uploaded(pattern.t_rows);
    view.t_block_ids = uploaded(pattern.t_ids);
    int32_t* plan = device_array<int32_t>(cuda::plan_size(view));
    require(cuda::build_plan(view, plan, stream_));

    // Rotating operands.
    const int64_t set_bytes = int64_t{sizeof(T)} * (tokens * (in + out) + blocks * bh * bw);
    const int sets = static_cast<int>(std::clamp<int64_t>((300 << 20) / set_bytes + 1, 1, 64));
    std::vector<T*> x, y, values, weights;
    const auto filled = [&](int64_t n, unsigned long long seed) {
      T* p = device_array<T>(n);
      fill_random<<<2048, 256, 0, stream_>>>(p, n, seed);
      return p;
    };
    const int weight_sets =
        std::min<int>(sets, static_cast<int>((300 << 20) / (int64_t{sizeof(T)} * in * out) + 1));
    for (int s = 0; s < sets; ++s) {
      x.push_back(filled(tokens * in, 1 + 17 * s));
      y.push_back(filled(tokens * out, 2 + 17 * s));
      values.push_back(filled(blocks * bh * bw, 3 + 17 * s));
    }
    for (int s = 0; s < weight_sets; ++s) weights.push_back(device_array<T>(in * out));
    const auto densified = [&](const T* from, T* to) {
      CHECK(cudaMemsetAsync(to, 0, static_cast<std::size_t>(in * out) * sizeof(T), stream_));
      densify<<<static_cast<unsigned>(blocks), 256, 0, stream_>>>(
          from, rows, cols, ids, static_cast<int>(bh), static_cast<int>(bw), in, to);
    };

    for (const std::string& product : o_.products) {
      // Dense weights are random for timing (zeros run faster), the sparse ones
      // for checking. Results go to the last set.
      std::function<void(int)> sparse, dense;
      double bytes = 0;
      std::string kernel;
      T* result = device_array<T>(std::max(tokens * std::max(in, out), in * out));
      T* expected = device_array<T>(std::max(tokens * std::max(in, out), in * out));
      std::vector<char*> workspaces;
      if (product == "fwd") {
        cuda::ForwardArgs a;
        a.dtype = type;
        a.allow_tf32 = tf32_;
        a.pattern = view;
        a.plan = plan;
        a.tokens = tokens;
        a.ldx = in;
        a.ldy = out;
        bytes = sizeof(T) * static_cast<double>(tokens * (in + out) + blocks * bh * bw);
        const auto with = [=, this](int i, T* to) {
          cuda::ForwardArgs c = a;
          c.x = x[static_cast<std::size_t>(i % sets)];
          c.values = values[static_cast<std::size_t>(i % sets)];
          c.y = to;
          require(cuda::forward(c, stream_));
        };
        const auto dense_with = [=, this](int i, const T* w, T* to) {
          gemm<T>(CUBLAS_OP_T, CUBLAS_OP_N, out, tokens, in, w, in,
                  x[static_cast<std::size_t>(i % sets)], in, to);
        };
        densified(values[0], weights[0]);
        with(0, result);
        dense_with(0, weights[0], expected);
        compare<<<2048, 256, 0, stream_>>>(result, expected, tokens * out, sums_);
        sparse = [=](int i) { with(i, y[static_cast<std::size_t>(i % sets)]); };
        dense = [=](int i) {
          dense_with(i, weights[static_cast<std::size_t>(i % weight_sets)],
                     y[static_cast<std::size_t>(i % sets)]);
        };
        a.x = x[0], a.y = y[0], a.values = values[0];
        kernel = cuda::kernel_of(a);
      } else if (product == "igrad") {
        cuda::InputGradientArgs a;
        a.dtype = type;
        a.allow_tf32 = tf32_;
        a.pattern = view;
        a.plan = plan;
        a.tokens = tokens;
        a.lddy = out;
        a.lddx = in;
        bytes = sizeof(T) * static_cast<double>(tokens * (in + out) + blocks * bh * bw);
        const auto with = [=, this](int i, T* to) {
          cuda::InputGradientArgs c = a;
          c.dy = y[static_cast<std::size_t>(i % sets)];
          c.values = values[static_cast<std::size_t>(i % sets)];
          c.dx = to;
          require(cuda::input_gradient(c, stream_));
        };
        const auto dense_with = [=, this](int i, const T* w, T* to) {
          gemm<T>(CUBLAS_OP_N, CUBLAS_OP_N, in, tokens, out, w, in,
                  y[static_cast<std::size_t>(i % sets)], out, to);
        };
        densified(values[0], weights[0]);
        with(0, result);
        dense_with(0, weights[0], expected);
        compare<<<2048, 256, 0, stream_>>>(result, expected, tokens * in, sums_);
        sparse = [=](int i) { with(i, x[static_cast<std::size_t>(i % sets)]); };
        dense = [=](int i) {
          dense_with(i, weights[static_cast<std::size_t>(i % weight_sets)],
                     x[static_cast<std::size_t>(i % sets)]);
        };
        a.dy = y[0], a.dx = x[0], a.values = values[0];
        kernel = cuda::kernel_of(a);
      } else if (product == "norms") {
        cuda::BlockNormsArgs a;
        a.dtype = type;
        a.allow_tf32 = tf32_;
        a.pattern = view;
        a.tokens = tokens;
        a.lddy = out;
        a.ldx = in;
        auto* norms = device_array<float>(out / bh * (in / bw));
        workspaces.push_back(reinterpret_cast<char*>(norms));
        bytes = sizeof(T) * static_cast<double>(tokens * (in + out));
        sparse = [=, this](int i) {
          cuda::BlockNormsArgs c = a;
          c.dy = y[static_cast<std::size_t>(i % sets)];
          c.x = x[static_cast<std::size_t>(i % sets)];
          c.norms = norms;
          require(cuda::block_norms(c, stream_));
        };
        const auto dense_with = [=, this](int i, T* to) {
          gemm<T>(CUBLAS_OP_N, CUBLAS_OP_T, in, out, tokens, x[static_cast<std::size_t>(i % sets)],
                  in, y[static_cast<std::size_t>(i % sets)], out, to);
        };
        sparse(0);
        dense_with(0, expected);
        compare_norms<<<static_cast<unsigned>(out / bh * (in / bw)), 256, 0, stream_>>>(
            norms, expected, static_cast<int>(bh), static_cast<int>(bw), in, sums_);
        dense = [=](int i) { dense_with(i, weights[static_cast<std::size_t>(i % weight_sets)]); };
        a.dy = y[0], a.x = x[0], a.norms = norms;
        kernel = cuda::kernel_of(a);
      } else {
        cuda::WeightGradientArgs a;
        a.dtype = a.out_dtype = type;
        a.allow_tf32 = tf32_;
        a.pattern = view;
        a.plan = plan;
        a.tokens = tokens;
        a.lddy = out;
        a.ldx = in;
        a.workspace.bytes = cuda::weight_gradient_workspace(a);
        a.workspace.data = device_array<char>(static_cast<int64_t>(a.workspace.bytes));
        workspaces.push_back(static_cast<char*>(a.workspace.data));
        bytes = sizeof(T) * static_cast<double>(tokens * (in + out) + blocks * bh * bw);
        const auto with = [=, this](int i, T* to) {
          cuda::WeightGradientArgs c = a;
          c.dy = y[static_cast<std::size_t>(i % sets)];
          c.x = x[static_cast<std::size_t>(i % sets)];
          c.dvalues = to;
          require(cuda::weight_gradient(c, stream_));
        };
        const auto dense_with = [=, this](int i, T* to) {
          gemm<T>(CUBLAS_OP_N, CUBLAS_OP_T, in, out, tokens, x[static_cast<std::size_t>(i % sets)],
                  in, y[static_cast<std::size_t>(i % sets)], out, to);
        };
        with(0, result);
        dense_with(0, expected);
        compare_blocks<<<static_cast<unsigned>(blocks), 256, 0, stream_>>>(
            result, expected, rows, cols, ids, static_cast<int>(bh), static_cast<int>(bw), in,
            sums_);
        sparse = [=](int i) { with(i, values[static_cast<std::size_t>(i % sets)]); };
        dense = [=](int i) { dense_with(i, weights[static_cast<std::size_t>(i % weight_sets)]); };
        a.dy = y[0], a.x = x[0], a.dvalues = values[0];
        kernel = cuda::kernel_of(a);
      }
      const double error = relative_error();
      // Two results rounded to 8 bits each: 2^-9 sqrt(2 / 3) apart on average. TF32
      // rounds operands to 11 bits, where cuBLAS cuts them; f32 differs in the
      // order of the sums alone.
      if (!(error < (tf32_ ? 2e-3 : std::is_same_v<T, float> ? 1e-5 : 4e-3))) {
        std::fprintf(stderr, "WRONG: %s block %ldx%ld density %g: relative error %g\n",
                     product.c_str(), static_cast<long>(bh), static_cast<long>(bw), density, error);
        ++wrong_;
      }
      for (T* w : weights) fill_random<<<2048, 256, 0, stream_>>>(w, in * out, 5);
      for (int s = 0; s < sets; ++s) {
        fill_random<<<2048, 256, 0, stream_>>>(x[static_cast<std::size_t>(s)], tokens * in,
                                               1 + 17 * s);
        fill_random<<<2048, 256, 0, stream_>>>(y[static_cast<std::size_t>(s)], tokens * out,
                                               2 + 17 * s);
        fill_random<<<2048, 256, 0, stream_>>>(values[static_cast<std::size_t>(s)],
                                               blocks * bh * bw, 3 + 17 * s);
      }
      const auto [us, dense_us] = time_pair(stream_, sparse, dense);
      // Norms are those of all blocks.
      const double share = product == "norms" ? 1 : true_density;
      const double flop = 2.0 * static_cast<double>(tokens) * share * static_cast<double>(in * out);
      const double roof = std::max(share * dense_us, bytes / copy_bytes_per_us_);
      const double aim = sizeof(T) == 2 && bh == bw ? goal(out, bh, density) : 0;
      const std::string block =
          bh == bw ? std::to_string(bh) : std::to_string(bh) + "x" + std::to_string(bw);
      char shape[64];
      std::snprintf(shape, sizeof(shape), "%ldx%ld", static_cast<long>(in), static_cast<long>(out));
      std::printf("%-18s %-6s %7s %7.3f %6ld %9.1f %8.1f %9.1f %7.2f %6.2f %9.2f  %s\n", shape,
                  product.c_str(), block.c_str(), density, static_cast<long>(tokens), us,
                  flop / us * 1e-6, dense_us, dense_us / us, aim, roof / us, kernel.c_str());
      std::fflush(stdout);
      char line[512];
      std::snprintf(line, sizeof(line),
                    "{\"in\": %ld, \"out\": %ld, \"product\": \"%s\", \"block\": %s, "
                    "\"density\": %g, \"tokens\": %ld, \"us\": %.2f, \"dense_us\": %.2f, "
                    "\"ratio\": %.3f, \"goal\": %g, \"roofline_fraction\": %.3f, "
                    "\"relative_error\": %.2e, \"kernel\": \"%s\"}",
                    static_cast<long>(in), static_cast<long>(out), product.c_str(),
                    (bh == bw ? block : '"' + block + '"').c_str(), density,
                    static_cast<long>(tokens), us, dense_us, dense_us / us, aim, roof / us, error,
                    kernel.c_str());
      lines_.push_back(line);
      CHECK(cudaFree(result));
      CHECK(cudaFree(expected));
      for (char* w : workspaces) CHECK(cudaFree(w));
    }
    for (const auto& list : {x, y, values, weights}) {
      for (T* p : list) CHECK(cudaFree(p));
    }
    for (const void* p :
         {static_cast<const void*>(rows), static_cast<const void*>(cols),
          static_cast<const void*>(ids), static_cast<const void*>(plan),
          static_cast<const void*>(view.crow_indices), static_cast<const void*>(view.ccol_indices),
          static_cast<const void*>(view.row_indices), static_cast<const void*>(view.t_block_ids)}) {
      CHECK(cudaFree(const_cast<void*>(p)));
    }
  }

  void write_json() const {
    if (wrong_ > 0) {
      std::fprintf(stderr, "%d results were wrong; no file is written.\n", wrong_);
      std::exit(1);
    }
    if (o_.json.empty()) return;
    cudaDeviceProp device{};
    CHECK(cudaGetDeviceProperties(&device, 0));
    std::FILE* file = std::fopen(o_.json.c_str(), "w");
    if (file == nullptr) {
      std::fprintf(stderr, "Cannot write %s.\n", o_.json.c_str());
      std::exit(1);
    }
    std::fprintf(file,
                 "{\n\"device\": \"%s\",\n\"date\": \"%s\",\n\"command\": \"%s\",\n"
                 "\"dtype\": \"%s\",\n\"copy_tb_per_s\": %.3f,\n\"results\": [\n",
                 device.name, o_.date.c_str(), command_.c_str(), o_.dtype.c_str(),
                 copy_bytes_per_us_ * 1e-6);
    for (std::size_t i = 0; i < lines_.size(); ++i) {
      std::fprintf(file, "%s%s\n", lines_[i].c_str(), i + 1 < lines_.size() ? "," : "");
    }
    std::fprintf(file, "]\n}\n");
    std::fclose(file);
  }

  Options o_;
  std::string command_;
  cudaStream_t stream_ = nullptr;
  cublasHandle_t cublas_ = nullptr;
  double* sums_ = nullptr;
  double copy_bytes_per_us_ = 0;
  bool tf32_ = false;
  int wrong_ = 0;
  std::vector<std::string> lines_;
};

}  // namespace

int main(int argc, char** argv) {
  Options o;
  std::string command = "block_sparse_cuda_bench";
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string key = argv[i];
    const std::string value = argv[i + 1];
    if (key != "--json" && key != "--date") command += " " + key + " " + value;
    if (key == "--json") {
      o.json = value;
    } else if (key == "--date") {
      o.date = value;
    } else if (key == "--dtype") {
      o.dtype = value;
    } else if (key == "--force") {
      setenv("BLOCK_SPARSE_FORCE", value.c_str(), 1);
    } else if (key == "--products") {
      o.products = split(value, ',');
    } else if (key == "--blocks") {
      o.blocks = split(value, ',');
    } else if (key == "--densities") {
      o.densities = split(value, ',');
    } else if (key == "--shapes") {
      o.shapes = split(value, ',');
    } else {
      std::fprintf(stderr, "Unknown option %s; the head of bench.cu lists them.\n", key.c_str());
      return 2;
    }
  }
  Bench bench(o, command);
  CHECK(cudaDeviceSynchronize());
  if (o.dtype == "f16") {
    bench.run<__half>();
  } else if (o.dtype == "f32" || o.dtype == "tf32") {
    bench.run<float>();
  } else {
    bench.run<__nv_bfloat16>();
  }
  return 0;
}
