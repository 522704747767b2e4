// SPDX-License-Identifier: Apache-2.0
#include <block_sparse/block_sparse.h>

#include <cstdio>
#include <vector>

int main() {
  // W (4, 6) in blocks of (2, 3), two of its four blocks stored:
  //   1 1 1 . . .
  //   1 1 1 . . .
  //   . . . 2 2 2
  //   . . . 2 2 2
  block_sparse::Pattern pattern;
  block_sparse::Status status = block_sparse::Pattern::create(
      /*rows=*/4, /*cols=*/6, /*block_height=*/2, /*block_width=*/3,
      /*crow_indices=*/{0, 1, 2}, /*col_indices=*/{0, 1}, /*block_ids=*/{}, /*slots=*/2, &pattern);
  if (!status.ok()) {
    std::fprintf(stderr, "%s\n", status.message().c_str());
    return 1;
  }
  const std::vector<float> values = {1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2};
  const std::vector<float> x = {1, 2, 3, 4, 5, 6, -1, 0, 1, 0, 1, 0};  // (2 tokens, 6)
  std::vector<float> y(2 * 4);

  block_sparse::cpu::ForwardArgs args;
  args.pattern = pattern.view();
  args.tokens = 2;
  args.x = x.data();
  args.ldx = 6;
  args.values = values.data();
  args.y = y.data();
  args.ldy = 4;
  const auto threads = block_sparse::make_thread_pool(2);
  status = block_sparse::cpu::forward(args, *threads);
  if (!status.ok()) {
    std::fprintf(stderr, "%s\n", status.message().c_str());
    return 1;
  }
  for (const float value : y) std::printf("%g ", value);
  std::printf("\n");
}
