# Flags of the sources that are compiled once per instruction set. Only such
# sources get them, and they define nothing with external linkage except their
# kernels, so that no wide copy of an inline function reaches an older processor.
set(BLOCK_SPARSE_FLAGS_avx2 -mavx2 -mfma -mf16c)
set(BLOCK_SPARSE_FLAGS_avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c)
