# Installs the development package of BUILD_DIR below WORK_DIR, builds the
# project SOURCE_DIR against it with the example of the documentation DOCUMENT as
# its program, and compares what that prints.
file(REMOVE_RECURSE ${WORK_DIR})

function(run)
  execute_process(COMMAND ${ARGV} OUTPUT_VARIABLE output ERROR_VARIABLE errors
                  RESULT_VARIABLE result)
  if(NOT result EQUAL 0)
    list(JOIN ARGV " " command)
    message(FATAL_ERROR "${command} failed (${result}):\n${output}${errors}")
  endif()
  set(output "${output}" PARENT_SCOPE)
endfunction()

run(${CMAKE_COMMAND} --install ${BUILD_DIR} --config ${CONFIG} --component cpp
    --prefix ${WORK_DIR}/prefix)

# Somewhere else than where it was installed: the package must not remember.
file(RENAME ${WORK_DIR}/prefix ${WORK_DIR}/moved)

# The first block of C++ in the document.
file(READ ${DOCUMENT} text)
string(FIND "${text}" "```cpp\n" begin)
string(SUBSTRING "${text}" ${begin} -1 text)
string(SUBSTRING "${text}" 7 -1 text)
string(FIND "${text}" "```" end)
string(SUBSTRING "${text}" 0 ${end} text)
file(WRITE ${WORK_DIR}/multiply.cc "${text}")

run(${CMAKE_COMMAND} -S ${SOURCE_DIR} -B ${WORK_DIR}/build -G ${GENERATOR}
    -D CMAKE_MAKE_PROGRAM=${MAKE_PROGRAM} -D CMAKE_CXX_COMPILER=${CXX_COMPILER}
    -D CMAKE_BUILD_TYPE=${CONFIG} -D CMAKE_PREFIX_PATH=${WORK_DIR}/moved
    -D PROGRAM=${WORK_DIR}/multiply.cc)
run(${CMAKE_COMMAND} --build ${WORK_DIR}/build --config ${CONFIG})

find_program(multiply multiply PATHS ${WORK_DIR}/build ${WORK_DIR}/build/${CONFIG}
             NO_DEFAULT_PATH REQUIRED)
run(${multiply})
set(expected "6 6 30 31 0 0 0 0 ")
if(NOT output STREQUAL expected)
  message(FATAL_ERROR "the program printed '${output}', expected '${expected}'")
endif()
