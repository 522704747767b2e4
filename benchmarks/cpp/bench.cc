// SPDX-License-Identifier: Apache-2.0
//
// Times the three products, for perf and for comparing kernels:
//
//   block_sparse_bench [--shapes=FILE] [--threads=N] [--benchmark_filter=REGEX] [...]
//
// Each result is first compared with a product in double; a wrong one is an error, not a
// time. GF/s counts the stored blocks alone and takes the fastest iteration, by the thread's CPU
// time or, of several threads, by the clock; of_peak is its fraction of the rate of such
// multiply-adds that as many threads reach just before: of bf16 on tiles or by vdpbf16ps where
// there are any, else of f32. Operands are the same in each iteration, so caches are as warm as
// they hold them.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "block_sparse/block_sparse.h"
#include "common/numeric.h"
#include "cpu/dispatch.h"
#include "peaks.h"
#include "reference/reference.h"

namespace {

namespace bs = block_sparse;
using bs::DataType;

struct Problem {
  std::int64_t tokens, in, out, block_height, block_width;
  double density;
};

/// Lines of benchmarks/shapes/README.md, without those of uneven patterns.
std::vector<Problem> read_problems(const std::string& path) {
  std::ifstream file(path);
  if (!file) {
    std::fprintf(stderr, "--shapes: cannot read %s\n", path.c_str());
    std::exit(1);
  }
  std::vector<Problem> problems;
  for (std::string line; std::getline(file, line);) {
    line.resize(std::min(line.find('#'), line.size()));
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    std::istringstream fields(line);
    Problem p{};
    if (!(fields >> p.tokens >> p.in >> p.out >> p.block_height >> p.block_width >> p.density) ||
        p.tokens < 1 || p.in < 1 || p.out < 1 || p.block_height < 1 || p.block_width < 1) {
      std::fprintf(stderr, "--shapes: %s has '%s', expected six numbers\n", path.c_str(),
                   line.c_str());
      std::exit(1);
    }
    std::string pattern;
    if (!(fields >> pattern) || pattern == "even") problems.push_back(p);
  }
  return problems;
}

/// A matrix as the kernels get it, and the same numbers in double.
struct Operand {
  Operand(DataType type, std::int64_t size) : exact(static_cast<std::size_t>(size)) {
    bytes.resize(exact.size() * bs::size_of(type));
  }
  static Operand random(DataType type, std::int64_t size, std::mt19937& generator) {
    Operand out(type, size);
    std::uniform_real_distribution<float> uniform(-1, 1);
    bs::with_type(type, [&]<class T>(T*) {
      T* elements = reinterpret_cast<T*>(out.bytes.data());
      for (std::size_t i = 0; i < out.exact.size(); ++i) {
        elements[i] = bs::narrow<T>(uniform(generator));
        out.exact[i] = static_cast<double>(bs::widen(elements[i]));
      }
    });
    return out;
  }
  std::vector<double> magnitudes() const {
    std::vector<double> out(exact.size());
    std::transform(exact.begin(), exact.end(), out.begin(), [](double v) { return std::fabs(v); });
    return out;
  }

  std::vector<char> bytes;
  std::vector<double> exact;
};

/// What the three products have in common: two operands and a result.
struct Operands {
  const void *a, *b;
  void* c;
};

void bind(bs::cpu::ForwardArgs& args, const Problem& p, DataType type, const Operands& o) {
  args.dtype = type;
  args.x = o.a, args.ldx = p.in;
  args.values = o.b;
  args.y = o.c, args.ldy = p.out;
}
void bind(bs::cpu::InputGradientArgs& args, const Problem& p, DataType type, const Operands& o) {
  args.dtype = type;
  args.dy = o.a, args.lddy = p.out;
  args.values = o.b;
  args.dx = o.c, args.lddx = p.in;
}
void bind(bs::cpu::WeightGradientArgs& args, const Problem& p, DataType type, const Operands& o) {
  args.dtype = args.out_dtype = type;
  args.dy = o.a, args.lddy = p.out;
  args.x = o.b, args.ldx = p.in;
  args.dvalues = o.c;
}

/// Elements of a, b and c, and the most terms of a sum of c.
struct Sizes {
  std::int64_t a, b, c, terms;
};
Sizes sizes(const bs::cpu::ForwardArgs&, const Problem& p, std::int64_t stored) {
  return {p.tokens * p.in, stored, p.tokens * p.out, p.in};
}
Sizes sizes(const bs::cpu::InputGradientArgs&, const Problem& p, std::int64_t stored) {
  return {p.tokens * p.out, stored, p.tokens * p.in, p.out};
}
Sizes sizes(const bs::cpu::WeightGradientArgs&, const Problem& p, std::int64_t stored) {
  return {p.tokens * p.out, p.tokens * p.in, stored, p.tokens};
}

/// The threads of --threads.
std::unique_ptr<bs::Executor> executor;

bs::Status run(const bs::cpu::ForwardArgs& args) { return bs::cpu::forward(args, *executor); }
bs::Status run(const bs::cpu::InputGradientArgs& args) {
  return bs::cpu::input_gradient(args, *executor);
}
bs::Status run(const bs::cpu::WeightGradientArgs& args) {
  return bs::cpu::weight_gradient(args, *executor);
}

bs::Pattern random_pattern(const Problem& p, std::mt19937& generator) {
  const std::int64_t rows = (p.out + p.block_height - 1) / p.block_height;
  const std::int64_t cols = (p.in + p.block_width - 1) / p.block_width;
  std::vector<std::int64_t> blocks(static_cast<std::size_t>(rows * cols));
  std::iota(blocks.begin(), blocks.end(), std::int64_t{0});
  std::shuffle(blocks.begin(), blocks.end(), generator);
  const auto kept = std::llround(p.density * static_cast<double>(blocks.size()));
  blocks.resize(static_cast<std::size_t>(std::clamp<long long>(kept, 1, rows * cols)));
  std::sort(blocks.begin(), blocks.end());
  std::vector<std::int32_t> crow(static_cast<std::size_t>(rows) + 1);
  std::vector<std::int32_t> col;
  for (const std::int64_t block : blocks) {
    ++crow[static_cast<std::size_t>(block / cols) + 1];
    col.push_back(static_cast<std::int32_t>(block % cols));
  }
  std::partial_sum(crow.begin(), crow.end(), crow.begin());
  bs::Pattern pattern;
  const auto slots = static_cast<std::int64_t>(col.size());
  const bs::Status status =
      bs::Pattern::create(p.out, p.in, p.block_height, p.block_width, std::move(crow),
                          std::move(col), {}, slots, &pattern);
  if (!status.ok()) {
    std::fprintf(stderr, "%s\n", status.message().c_str());
    std::exit(1);
  }
  return pattern;
}

/// One product of one problem, ready to run.
template <class Args>
class Case {
 public:
  Case(const Problem& p, DataType type) : problem_(p), type_(type) {
    std::mt19937 generator(1);
    pattern_ = random_pattern(p, generator);
    stored_ = pattern_.view().slots * p.block_height * p.block_width;
    const Sizes n = sizes(Args(), p, stored_);
    terms_ = n.terms;
    a_ = std::make_unique<Operand>(Operand::random(type, n.a, generator));
    b_ = std::make_unique<Operand>(Operand::random(type, n.b, generator));
    c_ = std::make_unique<Operand>(type, n.c);
    args_ = bound(type, {a_->bytes.data(), b_->bytes.data(), c_->bytes.data()});
    error_ = verify();
  }

  const Args& args() const { return args_; }
  /// A sentence if the result is wrong.
  const std::string& error() const { return error_; }
  double flops() const {
    return 2.0 * static_cast<double>(problem_.tokens) * static_cast<double>(stored_);
  }

 private:
  Args bound(DataType type, const Operands& operands) const {
    Args args;
    args.pattern = pattern_.view();
    args.tokens = problem_.tokens;
    bind(args, problem_, type, operands);
    return args;
  }

  std::string verify() {
    if (bs::Status status = run(args_); !status.ok()) return status.message();
    // The exact sums, and those of the magnitudes, which bound the error of any order of
    // summation: (terms + 1) u sum |a b|, plus one rounding of the result.
    const auto in_double = [&](const std::vector<double>& a, const std::vector<double>& b) {
      std::vector<double> c(c_->exact.size());
      const Args args = bound(DataType::f64, {a.data(), b.data(), c.data()});
      const auto& reference = bs::cpu::kernels<Args>().back();
      if (bs::Status status = reference.run(args, bs::serial_executor()); !status.ok()) c.clear();
      return c;
    };
    const std::vector<double> exact = in_double(a_->exact, b_->exact);
    const std::vector<double> magnitude = in_double(a_->magnitudes(), b_->magnitudes());
    if (exact.empty() || magnitude.empty()) return "the product in double failed";
    const double summing = static_cast<double>(terms_ + 1) * 0x1p-24;
    const double rounding = type_ == DataType::bf16  ? 0x1p-8
                            : type_ == DataType::f16 ? 0x1p-11
                                                     : 0x1p-24;
    return bs::with_type(type_, [&]<class T>(T*) {
      const T* elements = reinterpret_cast<const T*>(c_->bytes.data());
      for (std::size_t i = 0; i < exact.size(); ++i) {
        const double actual = static_cast<double>(bs::widen(elements[i]));
        const double allowed = summing * magnitude[i];
        // Negated, so that NaN fails.
        if (!(std::fabs(actual - exact[i]) <=
              allowed + rounding * (std::fabs(exact[i]) + allowed))) {
          return "wrong result: element " + std::to_string(i) + " is " + std::to_string(actual) +
                 ", expected " + std::to_string(exact[i]);
        }
      }
      return std::string();
    });
  }

  Problem problem_;
  DataType type_;
  bs::Pattern pattern_;
  std::int64_t stored_ = 0;
  std::int64_t terms_ = 0;
  std::unique_ptr<Operand> a_, b_, c_;
  Args args_;
  std::string error_;
};

template <class Args>
std::string kernel_name(const Args& args) {
  const auto settings = bs::cpu::parse_settings(nullptr, std::getenv("BLOCK_SPARSE_FORCE"));
  for (const auto& kernel : bs::cpu::kernels<Args>()) {
    for (const std::string& forced : settings.forced) {
      if (forced == kernel.name) return forced;
    }
  }
  return bs::cpu::choose(args, bs::cpu::detected_features()).name;
}

bool any_error = false;

template <class Args>
void measure(benchmark::State& state, const std::string& name, const Problem& problem,
             DataType type) {
  // The function is called several times for one case, to find a number of iterations.
  static std::string prepared_name;
  static std::unique_ptr<Case<Args>> prepared;
  if (name != prepared_name) {
    prepared.reset();
    prepared = std::make_unique<Case<Args>>(problem, type);
    prepared_name = name;
  }
  if (!prepared->error().empty()) {
    any_error = true;
    state.SkipWithError(prepared->error().c_str());
    return;
  }
  const int threads = executor->concurrency();
  const double peak = peak_of_threads(type == DataType::bf16 ? bf16_peak : fma_peak, threads);
  const auto seconds = threads == 1 ? thread_seconds : wall_seconds;
  double best = std::numeric_limits<double>::infinity();
  for ([[maybe_unused]] auto iteration : state) {
    const double start = seconds();
    const bs::Status status = run(prepared->args());
    best = std::min(best, seconds() - start);
    benchmark::DoNotOptimize(status.ok());
  }
  state.counters["GF/s"] = prepared->flops() / best * 1e-9;
  if (peak > 0) state.counters["of_peak"] = prepared->flops() / best / peak;
  state.SetLabel(kernel_name(prepared->args()));
}

template <class Args>
void register_cases(const char* product, const std::vector<Problem>& problems) {
  for (const DataType type : {DataType::f32, DataType::bf16, DataType::f16}) {
    for (const Problem& p : problems) {
      std::ostringstream text;
      text << product << '/' << bs::name_of(type) << '/' << p.in << "->" << p.out << "/b"
           << p.block_height << 'x' << p.block_width << "/d" << p.density << "/T" << p.tokens;
      const std::string name = text.str();
      benchmark::RegisterBenchmark(name.c_str(), [name, p, type](benchmark::State& state) {
        measure<Args>(state, name, p, type);
      });
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  std::string shapes = BLOCK_SPARSE_SHAPES;
  int threads = 1;
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    const auto value = [&](std::string_view flag) {
      return argument.starts_with(flag) ? argv[i] + flag.size() : nullptr;
    };
    if (const char* file = value("--shapes=")) {
      shapes = file;
    } else if (const char* count = value("--threads="); count != nullptr && std::atoi(count) > 0) {
      threads = std::atoi(count);
    } else {
      std::fprintf(
          stderr,
          "%s: unknown, expected --shapes=FILE, --threads=N or a flag of Google Benchmark\n",
          argv[i]);
      return 1;
    }
  }
  executor = bs::make_thread_pool(threads);
  const std::vector<Problem> problems = read_problems(shapes);
  register_cases<bs::cpu::ForwardArgs>("forward", problems);
  register_cases<bs::cpu::InputGradientArgs>("input_gradient", problems);
  register_cases<bs::cpu::WeightGradientArgs>("weight_gradient", problems);
  benchmark::AddCustomContext("fma_peak_GF/s", std::to_string(fma_peak() * 1e-9));
  benchmark::AddCustomContext("bf16_peak_GF/s", std::to_string(bf16_peak() * 1e-9));
  benchmark::RunSpecifiedBenchmarks();
  return any_error ? 1 : 0;
}
