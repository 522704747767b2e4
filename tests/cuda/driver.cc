// SPDX-License-Identifier: Apache-2.0
//
// Stands in for libcuda.so.1: a driver that says it is made for CUDA VERSION
// and can nothing else. 0 is what CUDA reports where there is none.
extern "C" {
__attribute__((visibility("default"))) int cuDriverGetVersion(int* version) {
  *version = VERSION;
  return 0;
}
__attribute__((visibility("default"))) int cuInit(unsigned) { return 0; }
}
