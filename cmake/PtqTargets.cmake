# The three kinds of target that this project has. Warnings apply to our own code only.
set(PTQ_WARNINGS -Wall -Wextra -Wshadow -Werror=unused-result -Werror=return-type)

# TORCH, in all of them: the target includes ATen, whose headers are precompiled (cmake/Torch.cmake).
# GRPC, for programs: they link gRPC, and the shared Abseil as it does (cmake/Packages.cmake).

# Sources that include gRPC are compiled in batches of eight (a unity build): the headers take longer than
# the code. (Precompiled, gRPC's make it slower still: each file then compiles their inline functions.)
function(ptq_batch_sources name)
  set_target_properties(${name} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 8)
endfunction()

# ptq_cc_library(NAME [TORCH] SRCS ... DEPS ...): a static library with includes from the repository root.
function(ptq_cc_library name)
  cmake_parse_arguments(ARG "TORCH" "" "SRCS;DEPS" ${ARGN})
  if(ARG_SRCS)
    add_library(${name} STATIC ${ARG_SRCS})
    target_include_directories(${name} PUBLIC ${PROJECT_SOURCE_DIR})
    target_link_libraries(${name} PUBLIC ${ARG_DEPS})
    target_compile_options(${name} PRIVATE ${PTQ_WARNINGS})
    if(ARG_TORCH)
      target_precompile_headers(${name} REUSE_FROM ptq_torch_headers)
    endif()
  else()
    add_library(${name} INTERFACE)
    target_include_directories(${name} INTERFACE ${PROJECT_SOURCE_DIR})
    target_link_libraries(${name} INTERFACE ${ARG_DEPS})
  endif()
endfunction()

# ptq_cc_binary(NAME [TORCH | GRPC] SRCS ... DEPS ...): a program in build/bin.
function(ptq_cc_binary name)
  cmake_parse_arguments(ARG "GRPC;TORCH" "" "SRCS;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SRCS})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS})
  target_compile_options(${name} PRIVATE ${PTQ_WARNINGS})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin
    PTQ_GRPC ${ARG_GRPC})
  if(ARG_TORCH)
    target_precompile_headers(${name} REUSE_FROM ptq_torch_headers)
  endif()
endfunction()

# ptq_cc_test(NAME [TORCH | GRPC] SRCS ... DEPS ... LABELS ...): a GoogleTest program, one ctest entry.
function(ptq_cc_test name)
  cmake_parse_arguments(ARG "GRPC;TORCH" "" "SRCS;DEPS;LABELS" ${ARGN})
  if(NOT PTQ_BUILD_TESTS)
    return()
  endif()
  add_executable(${name} ${ARG_SRCS})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} ptq_testing GTest::gmock GTest::gtest_main)
  # The code under test is optimised; compiling the tests themselves so would double a build.
  target_compile_options(${name} PRIVATE ${PTQ_WARNINGS} -O0)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/tests
    PTQ_GRPC ${ARG_GRPC})
  if(ARG_TORCH)
    target_precompile_headers(${name} REUSE_FROM ptq_torch_test_headers)
  endif()
  add_test(NAME ${name} COMMAND ${name})
  # Threads that spin while they wait for each other make tests on a busy machine fifty times slower.
  set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT 900
    ENVIRONMENT "GOMP_SPINCOUNT=1000")
endfunction()

# ptq_cuda_test(NAME SRCS ... DEPS ...): one that needs a GPU: `ctest -L gpu`, or make gpu-test.
function(ptq_cuda_test name)
  if(PTQ_CUDA_FOUND AND PTQ_BUILD_TESTS)
    ptq_cc_test(${name} TORCH ${ARGN} LABELS gpu)
    add_dependencies(${name} ptq_cuda)
  endif()
endfunction()

# ptq_py_test(NAME FILE LABELS ...): a pytest file that runs with the project's .venv.
function(ptq_py_test name file)
  cmake_parse_arguments(ARG "" "" "LABELS" ${ARGN})
  if(NOT PTQ_BUILD_TESTS)
    return()
  endif()
  add_test(NAME ${name} COMMAND ${PTQ_PYTHON} -m pytest -q -s -p no:cacheprovider
           ${PROJECT_SOURCE_DIR}/${file})
  set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT 1800
    ENVIRONMENT "PTQ_BUILD_DIR=${PROJECT_BINARY_DIR};PTQ_SOURCE_DIR=${PROJECT_SOURCE_DIR};HF_HUB_OFFLINE=1;TRANSFORMERS_OFFLINE=1;PYTHONDONTWRITEBYTECODE=1")
endfunction()
