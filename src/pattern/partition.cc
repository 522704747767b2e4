// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "block_sparse/pattern.h"

namespace block_sparse {

std::vector<std::int64_t> partition_by_blocks(const std::int32_t* pointers, std::int64_t n,
                                              int parts, double empty_line_cost) {
  parts = std::max(parts, 1);
  const auto cost = [&](std::int64_t line) {
    const std::int32_t blocks = pointers[line + 1] - pointers[line];
    return blocks > 0 ? static_cast<double>(blocks) : empty_line_cost;
  };
  double total = 0;
  for (std::int64_t line = 0; line < n; ++line) total += cost(line);

  std::vector<std::int64_t> boundaries(static_cast<std::size_t>(parts) + 1, n);
  boundaries[0] = 0;
  double before = 0;  // cost of the lines [0, line)
  std::int64_t line = 0;
  for (int part = 1; part < parts; ++part) {
    const double target = total * part / parts;
    // A line goes to the side of the boundary that holds more of it.
    while (line < n && before + cost(line) / 2 < target) before += cost(line++);
    boundaries[static_cast<std::size_t>(part)] = line;
  }
  return boundaries;
}

}  // namespace block_sparse
