# The CUDA engine is not written yet: every build carries the file that says so.

function(gptoss_add_cuda target)
  target_sources(${target} PRIVATE ${PROJECT_SOURCE_DIR}/csrc/cuda/no_cuda.cc)
endfunction()
