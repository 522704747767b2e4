# block_sparse_options(target): the flags of all our own targets.
function(block_sparse_options target)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wpedantic -Wshadow -Wconversion
                                           -Wno-sign-conversion)
  if(BLOCK_SPARSE_WERROR)
    target_compile_options(${target} PRIVATE -Werror)
  endif()
  if(BLOCK_SPARSE_SANITIZE)
    target_compile_options(${target} PRIVATE -fsanitize=address,undefined
                                             -fno-sanitize-recover=all -fno-omit-frame-pointer)
    target_link_options(${target} PRIVATE -fsanitize=address,undefined)
  endif()
endfunction()
