# strata_library(NAME SOURCES ... [LINK ...]): a static library of one module; its headers are included as "layers/store.h".
function(strata_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINK" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_include_directories(${name} PUBLIC ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}/include)
  target_link_libraries(${name} PUBLIC ${ARG_LINK})
endfunction()

# strata_test(NAME SOURCES ... [LINK ...]): GoogleTest cases beside the code they test, each one a ctest case.
function(strata_test name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINK" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_LINK} GTest::gmock GTest::gtest_main)
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR}/src)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/test)
  gtest_discover_tests(${name} DISCOVERY_TIMEOUT 60 PROPERTIES TIMEOUT 300)
endfunction()

# strata_fuzz(NAME SOURCES ... [LINK ...]): with clang and -DSTRATA_FUZZ=ON the libFuzzer program NAME_fuzz, else a test that
# runs its cases in tests/corpus/NAME.
function(strata_fuzz case_folder)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINK" ${ARGN})
  set(name ${case_folder}_fuzz)
  if(NOT STRATA_FUZZ)
    strata_test(${name}_test SOURCES ${ARG_SOURCES} ${PROJECT_SOURCE_DIR}/src/base/fuzz_cases_test.cpp LINK ${ARG_LINK})
    target_compile_definitions(${name}_test PRIVATE STRATA_FUZZER=${name}
                                                       STRATA_CASES="${PROJECT_SOURCE_DIR}/tests/corpus/${case_folder}")
    return()
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_LINK})
  target_link_options(${name} PRIVATE -fsanitize=fuzzer)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/fuzz)
endfunction()
