# The CUDA engine, or the one file that stands for its absence.

set(GPTOSS_CUDA AUTO CACHE STRING "CUDA engine: ON, OFF, or AUTO: where a compiler is found")
set_property(CACHE GPTOSS_CUDA PROPERTY STRINGS AUTO ON OFF)
# Machine code for each; PTX of the first serves what comes after the last.
set(GPTOSS_CUDA_ARCHS "80;86;89;90a;100;120" CACHE STRING "Compute capabilities to compile for")
option(GPTOSS_CUDA_LINEINFO "Let profilers map instructions to source lines" OFF)

if(GPTOSS_CUDA STREQUAL "AUTO" AND NOT GPTOSS_SANITIZE)
  include(CheckLanguage)
  check_language(CUDA)
  set(GPTOSS_WITH_CUDA ${CMAKE_CUDA_COMPILER})
elseif(GPTOSS_CUDA STREQUAL "ON")
  set(GPTOSS_WITH_CUDA ON)
endif()

# Hopper's own instructions need 90a, so those files are compiled for it alone.
function(gptoss_cuda_objects target archs)
  add_library(${target} OBJECT ${ARGN})
  set_target_properties(${target} PROPERTIES CUDA_ARCHITECTURES "${archs}")
  target_link_libraries(${target} PRIVATE gptoss_options gptoss_warnings CUDA::cudart_static)
  # The standard is said here: CMake 3.25 takes C++20 for the default of nvcc 13 and leaves it out.
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20 -diag-suppress=177>)
  if(GPTOSS_CUDA_LINEINFO)
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-lineinfo>)
  endif()
endfunction()

function(gptoss_add_cuda target)
  set(dir ${PROJECT_SOURCE_DIR}/csrc/cuda)
  if(NOT GPTOSS_WITH_CUDA)
    target_sources(${target} PRIVATE ${dir}/no_cuda.cc)
    return()
  endif()
  file(GLOB sources CONFIGURE_DEPENDS ${dir}/*.cc ${dir}/kernels/*.cu)
  list(FILTER sources EXCLUDE REGEX "/no_cuda\\.cc$")
  set(sm90 ${sources})
  list(FILTER sm90 INCLUDE REGEX "_sm90a?\\.cu$")
  list(FILTER sources EXCLUDE REGEX "_sm90a?\\.cu$")

  list(TRANSFORM GPTOSS_CUDA_ARCHS APPEND "-real" OUTPUT_VARIABLE archs)
  list(GET GPTOSS_CUDA_ARCHS 0 oldest)
  list(APPEND archs "${oldest}-virtual")
  gptoss_cuda_objects(gptoss_cuda "${archs}" ${sources})
  target_sources(${target} INTERFACE $<TARGET_OBJECTS:gptoss_cuda>)
  if(sm90)
    gptoss_cuda_objects(gptoss_cuda_sm90 90a-real ${sm90})
    target_sources(${target} INTERFACE $<TARGET_OBJECTS:gptoss_cuda_sm90>)
  endif()
  # The runtime is inside the module and looks for the driver when it is first used, so that the
  # module loads where there is none.
  target_link_libraries(${target} INTERFACE CUDA::cudart_static)
endfunction()
