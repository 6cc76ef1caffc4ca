# One object library for each instruction set: the same kernels, compiled with other flags.

function(gptoss_add_isa target isa)
  add_library(gptoss_${isa} OBJECT ${PROJECT_SOURCE_DIR}/csrc/cpu/isa_${isa}.cc)
  target_link_libraries(gptoss_${isa} PRIVATE gptoss_options gptoss_warnings)
  target_compile_options(gptoss_${isa} PRIVATE ${ARGN})
  if(GPTOSS_SANITIZE)  # everything is inlined there: -O2 with every check takes minutes
    target_compile_options(gptoss_${isa} PRIVATE -O1 -fno-sanitize=undefined)
  endif()
  target_sources(${target} INTERFACE $<TARGET_OBJECTS:gptoss_${isa}>)
endfunction()

function(gptoss_add_cpu_kernels target)
  gptoss_add_isa(${target} scalar)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
    gptoss_add_isa(${target} avx2 -mavx2 -mfma -mf16c -mbmi2)
    set(avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni
      -mavx2 -mfma -mf16c -mbmi2 -mprefer-vector-width=512)
    gptoss_add_isa(${target} avx512 ${avx512})
    gptoss_add_isa(${target} amx ${avx512} -mavx512vbmi -mavx512bf16 -mamx-tile -mamx-bf16
      -mamx-int8 -fno-exceptions)  # or the scope of the tiles leaves a weak symbol
  endif()
endfunction()
