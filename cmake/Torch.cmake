# libtorch from the PyPI wheel, as plain imported targets.
#
# The wheel's own CMake package insists on a CUDA toolkit, and its include folder carries copies of
# google/protobuf and fmt that would shadow Debian's: so only targets that link ptq::torch see it.
# The CPU worker links torch_cpu and c10 alone; CUDA libraries are loaded when a job asks for a GPU.
if(NOT PTQ_TORCH_ROOT)
  file(GLOB PTQ_TORCH_ROOT ${PROJECT_SOURCE_DIR}/.venv/lib/python3*/site-packages/torch)
endif()
if(NOT EXISTS "${PTQ_TORCH_ROOT}/lib/libtorch_cpu.so")
  message(FATAL_ERROR "libtorch was not found: run `make setup`, or pass -DPTQ_TORCH_ROOT=.../torch")
endif()
file(READ ${PTQ_TORCH_ROOT}/version.py _torch_version)
if(NOT _torch_version MATCHES "__version__ = '2\\.11\\.0")
  message(FATAL_ERROR "ptqd is built against torch 2.11.0; ${PTQ_TORCH_ROOT} holds another version")
endif()
foreach(lib c10 torch_cpu)
  add_library(ptq::${lib} SHARED IMPORTED)
  set_target_properties(ptq::${lib} PROPERTIES IMPORTED_LOCATION ${PTQ_TORCH_ROOT}/lib/lib${lib}.so
    IMPORTED_NO_SONAME ON)
endforeach()
# at::parallel_for is a template: without -fopenmp it runs in one thread. The wheel's own OpenMP library
# is linked, so that our loops run in ATen's threads.
add_library(ptq::torch_openmp SHARED IMPORTED)
set_target_properties(ptq::torch_openmp PROPERTIES
  IMPORTED_LOCATION ${PTQ_TORCH_ROOT}/lib/libgomp.so.1)
add_library(ptq_torch INTERFACE)
target_compile_options(ptq_torch INTERFACE -fopenmp)
add_library(ptq::torch ALIAS ptq_torch)
target_include_directories(ptq_torch SYSTEM INTERFACE ${PTQ_TORCH_ROOT}/include
  ${PTQ_TORCH_ROOT}/include/torch/csrc/api/include)
target_link_libraries(ptq_torch INTERFACE ptq::torch_cpu ptq::c10 ptq::torch_openmp)
target_link_options(ptq_torch INTERFACE "-Wl,-rpath,${PTQ_TORCH_ROOT}/lib" "-Wl,--enable-new-dtags"
  "-Wl,-rpath-link,${PTQ_TORCH_ROOT}/lib")

# ATen's headers take the compiler fifteen seconds a file: they are read once for libraries and programs,
# and once for the tests, which aren't optimised.
file(CONFIGURE OUTPUT ${PROJECT_BINARY_DIR}/empty.cc CONTENT "")
add_library(ptq_torch_headers OBJECT ${PROJECT_BINARY_DIR}/empty.cc)
target_link_libraries(ptq_torch_headers PRIVATE ptq::torch)
target_precompile_headers(ptq_torch_headers PRIVATE <ATen/ATen.h>)
if(PTQ_BUILD_TESTS)
  add_library(ptq_torch_test_headers OBJECT ${PROJECT_BINARY_DIR}/empty.cc)
  target_link_libraries(ptq_torch_test_headers PRIVATE ptq::torch GTest::gmock)
  target_compile_options(ptq_torch_test_headers PRIVATE -O0)
  target_precompile_headers(ptq_torch_test_headers PRIVATE
    <ATen/ATen.h> <gmock/gmock.h> <gtest/gtest.h>)
endif()
