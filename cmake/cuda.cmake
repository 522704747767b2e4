# Whether the CUDA backend is built. Sets BLOCK_SPARSE_WITH_CUDA; if true, the language CUDA and
# the targets CUDA::… are there for every folder.
set(BLOCK_SPARSE_CUDA AUTO CACHE STRING
    "The CUDA backend: ON, OFF, or AUTO, which is ON where nvcc works and OFF elsewhere")
set_property(CACHE BLOCK_SPARSE_CUDA PROPERTY STRINGS AUTO ON OFF)
# Machine code for the tensor-core generations in use, PTX for what comes after: compute_90, from
# which sm_100 and later compile the portable kernels. wgmma and setmaxnreg exist in sm_90a only.
set(BLOCK_SPARSE_CUDA_ARCHITECTURES 80-real 86-real 89-real 90a-real 90-virtual CACHE STRING
    "Architectures of the portable CUDA kernels")

# Sets `${nvcc}` and `${host}` to an nvcc of 12.4 or newer and the host compiler to call it with
# (empty: what it takes by itself) that compile and link a C++20 program, or `${reason}`.
function(block_sparse_find_nvcc nvcc host reason)
  set(${reason} "" PARENT_SCOPE)
  if(CMAKE_CUDA_COMPILER)
    set(found ${CMAKE_CUDA_COMPILER})
  elseif(DEFINED ENV{CUDACXX})
    set(found $ENV{CUDACXX})
  else()
    find_program(BLOCK_SPARSE_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda
                 PATH_SUFFIXES bin)
    set(found ${BLOCK_SPARSE_NVCC})
  endif()
  if(NOT found)
    set(${reason} "no nvcc was found" PARENT_SCOPE)
    return()
  endif()
  execute_process(COMMAND ${found} --version OUTPUT_VARIABLE output ERROR_QUIET)
  if(NOT output MATCHES "release ([0-9.]+)")
    set(${reason} "${found} is no nvcc that runs" PARENT_SCOPE)
    return()
  endif()
  if(CMAKE_MATCH_1 VERSION_LESS 12.4)
    set(${reason} "${found} is version ${CMAKE_MATCH_1}, 12.4 or newer is needed" PARENT_SCOPE)
    return()
  endif()

  # By compiling, since what nvcc lacks is most often a host compiler that it accepts, or a part of
  # the toolkit that was not installed.
  set(probe ${CMAKE_BINARY_DIR}/CMakeFiles/block_sparse_nvcc)
  file(WRITE ${probe}.cu "#include <cuda.h>\n#include <cuda_runtime.h>\n#include <span>\n"
                         "__global__ void nothing() {}\n"
                         "int main() { nothing<<<1, 1>>>(); return cudaGetLastError(); }\n")
  if(CMAKE_CUDA_HOST_COMPILER)
    set(hosts ${CMAKE_CUDA_HOST_COMPILER})
  elseif(DEFINED ENV{CUDAHOSTCXX})
    set(hosts $ENV{CUDAHOSTCXX})
  else()
    set(hosts default ${CMAKE_CXX_COMPILER})
  endif()
  foreach(candidate IN LISTS hosts)
    set(option)
    if(NOT candidate STREQUAL default)
      set(option -ccbin ${candidate})
    endif()
    execute_process(COMMAND ${found} -std=c++20 -arch=sm_80 ${option} ${probe}.cu -o ${probe}
                    RESULT_VARIABLE failed OUTPUT_VARIABLE output ERROR_VARIABLE output)
    if(failed EQUAL 0)
      set(${nvcc} ${found} PARENT_SCOPE)
      string(REPLACE default "" candidate ${candidate})
      set(${host} "${candidate}" PARENT_SCOPE)
      return()
    endif()
  endforeach()
  string(REGEX MATCH "[^\n]*(error|fatal|unsupported|not found)[^\n]*" line "${output}")
  if(line STREQUAL "")
    string(REGEX MATCH "[^\n]*" line "${output}")
  endif()
  set(${reason} "${found} does not compile C++20 here: ${line}" PARENT_SCOPE)
endfunction()

set(BLOCK_SPARSE_WITH_CUDA OFF)
if(BLOCK_SPARSE_CUDA STREQUAL "AUTO" OR BLOCK_SPARSE_CUDA)
  block_sparse_find_nvcc(nvcc host reason)
  if(reason STREQUAL "")
    set(BLOCK_SPARSE_WITH_CUDA ON)
    set(CMAKE_CUDA_COMPILER ${nvcc})
    if(NOT host STREQUAL "")
      set(CMAKE_CUDA_HOST_COMPILER ${host})
    endif()
    enable_language(CUDA)
    find_package(CUDAToolkit 12.4 REQUIRED)
    message(STATUS "CUDA backend: with nvcc ${CMAKE_CUDA_COMPILER_VERSION} for "
                   "${BLOCK_SPARSE_CUDA_ARCHITECTURES}")
  elseif(BLOCK_SPARSE_CUDA STREQUAL "AUTO")
    message(STATUS "CUDA backend: left out, ${reason}")
  else()
    message(FATAL_ERROR "BLOCK_SPARSE_CUDA is ${BLOCK_SPARSE_CUDA}, but ${reason}.")
  endif()
else()
  message(STATUS "CUDA backend: left out, BLOCK_SPARSE_CUDA is ${BLOCK_SPARSE_CUDA}")
endif()
