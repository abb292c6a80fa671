# Debian's packages. Abseil and RE2 are linked statically wherever gRPC is absent, so that ptq-worker
# runs on GPU machines that have neither; beside gRPC, which is linked to the shared Abseil, a second
# copy would be wrong: such targets carry the property PTQ_GRPC.
find_package(absl REQUIRED)
find_package(OpenSSL REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(CLI11 REQUIRED)
find_package(Threads REQUIRED)

set(_shared absl::status absl::statusor absl::strings absl::str_format absl::time
  absl::synchronization absl::flat_hash_map absl::cleanup)
file(GLOB _absl_static ${CMAKE_LIBRARY_PATH} /usr/lib/x86_64-linux-gnu/libabsl_*.a
  /usr/lib/aarch64-linux-gnu/libabsl_*.a)
list(JOIN _absl_static "," _absl_static_csv)
add_library(ptq_absl INTERFACE)
foreach(target ${_shared})
  target_link_libraries(ptq_absl INTERFACE $<$<BOOL:$<TARGET_PROPERTY:PTQ_GRPC>>:${target}>)
endforeach()
target_link_libraries(ptq_absl INTERFACE
  "$<$<NOT:$<BOOL:$<TARGET_PROPERTY:PTQ_GRPC>>>:$<LINK_GROUP:RESCAN,${_absl_static_csv}>>"
  Threads::Threads)

find_library(PTQ_RE2_STATIC NAMES libre2.a REQUIRED)
find_library(PTQ_CRYPTO_STATIC NAMES libcrypto.a REQUIRED)
add_library(ptq_re2 INTERFACE)
target_link_libraries(ptq_re2 INTERFACE ${PTQ_RE2_STATIC} Threads::Threads)
add_library(ptq_crypto INTERFACE)
target_link_libraries(ptq_crypto INTERFACE ${PTQ_CRYPTO_STATIC} ${CMAKE_DL_LIBS} Threads::Threads)

if(PTQ_BUILD_SERVER)
  find_package(Protobuf REQUIRED)
  find_package(gRPC REQUIRED)
  find_package(SQLite3 REQUIRED)
endif()
if(PTQ_BUILD_TESTS)
  find_package(GTest REQUIRED)
endif()
