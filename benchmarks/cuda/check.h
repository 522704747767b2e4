// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdio>
#include <cstdlib>

/// Ends the program where a call of CUDA or cuBLAS does not succeed.
#define CHECK(call)                                                                      \
  do {                                                                                   \
    const auto status_ = (call);                                                         \
    if (static_cast<int>(status_) != 0) {                                                \
      std::fprintf(stderr, "%s:%d: %s failed with code %d\n", __FILE__, __LINE__, #call, \
                   static_cast<int>(status_));                                           \
      std::exit(1);                                                                      \
    }                                                                                    \
  } while (false)
