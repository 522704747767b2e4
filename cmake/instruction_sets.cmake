# Flags of the sources that are compiled once per instruction set. Only such
# sources get them, and they define nothing with external linkage except their
# kernels, so that no wide copy of an inline function reaches an older processor.
set(BLOCK_SPARSE_FLAGS_avx2 -mavx2 -mfma -mf16c)
set(BLOCK_SPARSE_FLAGS_avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c)
set(BLOCK_SPARSE_FLAGS_avx512_bf16 ${BLOCK_SPARSE_FLAGS_avx512} -mavx512bf16)
set(BLOCK_SPARSE_FLAGS_amx ${BLOCK_SPARSE_FLAGS_avx512})  # the tiles are assembly

# block_sparse_isa_sources(set file...): adds files of this folder to the core,
# compiled for that instruction set. Nothing on other processors than x86-64.
function(block_sparse_isa_sources set)
  if(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
    return()
  endif()
  target_sources(block_sparse PRIVATE ${ARGN})
  set_source_files_properties(${ARGN} TARGET_DIRECTORY block_sparse
                              PROPERTIES COMPILE_OPTIONS "${BLOCK_SPARSE_FLAGS_${set}}")
endfunction()
