# What a build may choose, and the flags that every file shares.

option(GPTOSS_WARNINGS_AS_ERRORS "Fail on compiler warnings" OFF)
option(GPTOSS_IN_TREE "Put the compiled module into python/gpt_oss_native of the checkout" OFF)
set(GPTOSS_SANITIZE "" CACHE STRING "Sanitizers to build with, such as address,undefined")

if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()
set(GPTOSS_VERSION ${PROJECT_VERSION})
if(DEFINED SKBUILD_PROJECT_VERSION_FULL)
  set(GPTOSS_VERSION ${SKBUILD_PROJECT_VERSION_FULL})
endif()

add_library(gptoss_options INTERFACE)
target_compile_features(gptoss_options INTERFACE cxx_std_20)
target_include_directories(gptoss_options INTERFACE ${PROJECT_SOURCE_DIR}/csrc)
# Contraction would make an expression's bits depend on the compiler's mood; kernels say fma.
target_compile_options(gptoss_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off -fno-math-errno> $<$<CONFIG:Release>:-O3>)
if(GPTOSS_SANITIZE)
  target_compile_options(gptoss_options INTERFACE
    -fsanitize=${GPTOSS_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_link_options(gptoss_options INTERFACE -fsanitize=${GPTOSS_SANITIZE})
endif()
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
