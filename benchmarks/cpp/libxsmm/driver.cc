// SPDX-License-Identifier: Apache-2.0
//
// The three products driven by hand over libxsmm's batch-reduce GEMM kernels: what a person who
// knows libxsmm would write, as a peer for the benchmarks. bench/libxsmm.py of the package calls
// it.
//
// libxsmm is column-major, so a row-major (tokens, features) matrix is (features, tokens) to it.
#include <libxsmm.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "block_sparse/executor.h"

namespace {

// Tokens of one task: its strip of outputs stays in L1 and L2, and small problems still give every
// thread something to do.
constexpr std::int64_t token_tile = 64;

using BatchKernel = libxsmm_smmfunction_reducebatch_addr;

struct Problem {
  std::int64_t tokens;
  std::int64_t out_features;
  std::int64_t in_features;
  std::int64_t block_height;  // of W (out, in); both divide the features
  std::int64_t block_width;
};

const block_sparse::Executor& pool(int threads) {
  static std::unique_ptr<block_sparse::Executor> executor;
  static int size = 0;
  if (size != threads) {
    executor = block_sparse::make_thread_pool(threads);
    size = threads;
  }
  return *executor;
}

// result[tokens, lines * m] = for each line the sum of the products of its blocks, each stored as a
// column-major (m, k), with the columns of `input` (tokens, ld_input) that `inner` names.
// Line l owns the blocks [pointers[l], pointers[l + 1]). 0 if libxsmm has no kernel for the shape.
int multiply(const float* input, std::int64_t ld_input, const float* const* blocks,
             const std::int32_t* pointers, const std::int32_t* inner, std::int64_t lines,
             std::int64_t m, std::int64_t k, std::int64_t tokens, float* result, int threads) {
  const auto kernel_for = [&](std::int64_t n) {
    const libxsmm_blasint lda = static_cast<libxsmm_blasint>(m);
    const libxsmm_blasint ldb = static_cast<libxsmm_blasint>(ld_input);
    const libxsmm_blasint ldc = static_cast<libxsmm_blasint>(lines * m);
    const float alpha = 1.0F;
    const float beta = 0.0F;
    return libxsmm_smmdispatch_reducebatch_addr(
        static_cast<libxsmm_blasint>(m), static_cast<libxsmm_blasint>(n),
        static_cast<libxsmm_blasint>(k), &lda, &ldb, &ldc, &alpha, &beta, nullptr, nullptr);
  };
  const std::int64_t tile = std::min(token_tile, tokens);
  const std::int64_t tiles = (tokens + tile - 1) / tile;
  const BatchKernel full = kernel_for(tile);
  const BatchKernel last = kernel_for(tokens - (tiles - 1) * tile);
  if (full == nullptr || last == nullptr) return 0;

  std::int32_t longest = 0;
  for (std::int64_t line = 0; line < lines; ++line) {
    longest = std::max(longest, pointers[line + 1] - pointers[line]);
  }
  pool(threads).parallel_for(tiles * lines, [&](std::int64_t begin, std::int64_t end) {
    // libxsmm's code steps through its operands by changing these, so each thread has its own.
    std::vector<const float*> weights(static_cast<std::size_t>(longest));
    std::vector<const float*> inputs(static_cast<std::size_t>(longest));
    for (std::int64_t task = begin; task < end; ++task) {
      const std::int64_t t = task / lines;
      const std::int64_t line = task % lines;
      const std::int32_t first = pointers[line];
      const auto count = static_cast<unsigned long long>(pointers[line + 1] - first);
      float* out = result + t * tile * lines * m + line * m;
      if (count == 0) {
        for (std::int64_t n = 0; n < std::min(tile, tokens - t * tile); ++n) {
          std::fill_n(out + n * lines * m, m, 0.0F);
        }
        continue;
      }
      for (std::size_t i = 0; i < count; ++i) {
        weights[i] = blocks[static_cast<std::size_t>(first) + i];
        inputs[i] = input + t * tile * ld_input + inner[static_cast<std::size_t>(first) + i] * k;
      }
      (t + 1 == tiles ? last : full)(weights.data(), inputs.data(), out, &count);
    }
  });
  return 1;
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// y (tokens, out) = x Wᵀ. blocks[i]: block i in BSR order, transposed to row-major (in, out).
int peer_forward(const Problem* p, const float* x, const float* const* blocks,
                 const std::int32_t* crow, const std::int32_t* col, float* y, int threads) {
  return multiply(x, p->in_features, blocks, crow, col, p->out_features / p->block_height,
                  p->block_height, p->block_width, p->tokens, y, threads);
}

// dx (tokens, in) = dy W. blocks[i]: block i in order of columns, row-major (out, in).
int peer_input_gradient(const Problem* p, const float* dy, const float* const* blocks,
                        const std::int32_t* ccol, const std::int32_t* row, float* dx, int threads) {
  return multiply(dy, p->out_features, blocks, ccol, row, p->in_features / p->block_width,
                  p->block_width, p->block_height, p->tokens, dx, threads);
}

// dvalues[i] (out, in) = dy[:, rows]ᵀ x[:, columns] for block i of `count`.
int peer_weight_gradient(const Problem* p, const float* dy, const float* x, const std::int32_t* row,
                         const std::int32_t* col, std::int64_t count, float* dvalues, int threads) {
  const libxsmm_blasint lda = static_cast<libxsmm_blasint>(p->in_features);
  const libxsmm_blasint ldb = static_cast<libxsmm_blasint>(p->out_features);
  const libxsmm_blasint ldc = static_cast<libxsmm_blasint>(p->block_width);
  const float alpha = 1.0F;
  const float beta = 0.0F;
  const int flags = LIBXSMM_GEMM_FLAG_TRANS_B;
  const libxsmm_smmfunction kernel = libxsmm_smmdispatch(
      static_cast<libxsmm_blasint>(p->block_width), static_cast<libxsmm_blasint>(p->block_height),
      static_cast<libxsmm_blasint>(p->tokens), &lda, &ldb, &ldc, &alpha, &beta, &flags, nullptr);
  if (kernel == nullptr) return 0;
  pool(threads).parallel_for(count, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      kernel(x + col[i] * p->block_width, dy + row[i] * p->block_height,
             dvalues + i * p->block_height * p->block_width);
    }
  });
  return 1;
}
}
#pragma GCC visibility pop
