// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

/// CPU time of the calling thread, in seconds: what other programs take does not count.
double thread_seconds();
double wall_seconds();

/// The most f32 multiply-adds that one core does at this moment, in flops per second,
/// with the widest instructions that kernels use. 0 where it is not known how to ask.
double fma_peak();

/// The same of bf16, summed in f32: on tiles, by vdpbf16ps, or else as f32.
double bf16_peak();

/// One of these on so many threads at the same time, together.
double peak_of_threads(double (*peak)(), int threads);

/// Bytes per second that so many threads read together, each its own part of `bytes` again and
/// again: from the cache that holds them, or from memory.
double read_bandwidth(std::int64_t bytes, int threads);
