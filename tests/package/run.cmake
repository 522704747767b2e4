# Installs the development package of BUILD_DIR below WORK_DIR, builds the
# project SOURCE_DIR against it and compares what its program prints.
file(REMOVE_RECURSE ${WORK_DIR})

function(run)
  execute_process(COMMAND ${ARGV} OUTPUT_VARIABLE output ERROR_VARIABLE output RESULT_VARIABLE result)
  if(NOT result EQUAL 0)
    list(JOIN ARGV " " command)
    message(FATAL_ERROR "${command} failed (${result}):\n${output}")
  endif()
  set(output "${output}" PARENT_SCOPE)
endfunction()

run(${CMAKE_COMMAND} --install ${BUILD_DIR} --config ${CONFIG} --component cpp
    --prefix ${WORK_DIR}/prefix)

# Somewhere else than where it was installed: the package must not remember.
file(RENAME ${WORK_DIR}/prefix ${WORK_DIR}/moved)

run(${CMAKE_COMMAND} -S ${SOURCE_DIR} -B ${WORK_DIR}/build -G ${GENERATOR}
    -D CMAKE_MAKE_PROGRAM=${MAKE_PROGRAM} -D CMAKE_CXX_COMPILER=${CXX_COMPILER}
    -D CMAKE_BUILD_TYPE=${CONFIG} -D CMAKE_PREFIX_PATH=${WORK_DIR}/moved)
run(${CMAKE_COMMAND} --build ${WORK_DIR}/build --config ${CONFIG})

find_program(multiply multiply PATHS ${WORK_DIR}/build ${WORK_DIR}/build/${CONFIG}
             NO_DEFAULT_PATH REQUIRED)
run(${multiply})
set(expected "6 6 30 30 0 0 2 2 \n")
if(NOT output STREQUAL expected)
  message(FATAL_ERROR "the program printed '${output}', expected '${expected}'")
endif()
