# The pinned llama.cpp, built once outside of this tree by scripts/build-llama.sh.
set(STRATA_LLAMA native CACHE STRING "Flavour of the llama.cpp build: native, portable, debug, asan, tsan, cuda")
set(STRATA_LLAMA_DIR "" CACHE PATH "A finished llama.cpp install; empty: build or find it by flavour")

# Another patch or flag is another llama.cpp build: an existing build folder configures itself anew.
file(GLOB llama_inputs CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/cmake/patches/llama.cpp/*.patch)
list(APPEND llama_inputs ${PROJECT_SOURCE_DIR}/scripts/build-llama.sh ${PROJECT_SOURCE_DIR}/scripts/fetch.py)
set_property(DIRECTORY ${PROJECT_SOURCE_DIR} APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${llama_inputs})

set(llama_dir ${STRATA_LLAMA_DIR})
if(NOT llama_dir)
  execute_process(
    COMMAND ${PROJECT_SOURCE_DIR}/scripts/build-llama.sh ${STRATA_LLAMA}
    OUTPUT_VARIABLE llama_dir OUTPUT_STRIP_TRAILING_WHITESPACE
    RESULT_VARIABLE failed)
  if(failed)
    message(FATAL_ERROR "scripts/build-llama.sh ${STRATA_LLAMA} failed")
  endif()
endif()
set(STRATA_LLAMA_PREFIX ${llama_dir} CACHE INTERNAL "")
message(STATUS "llama.cpp: ${llama_dir}")

function(llama_import name file)
  add_library(llama::${name} ${ARGV2} IMPORTED GLOBAL)
  set_target_properties(llama::${name} PROPERTIES IMPORTED_LOCATION ${llama_dir}/lib/${file})
  target_include_directories(llama::${name} SYSTEM INTERFACE ${llama_dir}/include)
endfunction()

llama_import(ggml-base libggml-base.so SHARED)
llama_import(ggml libggml.so SHARED)
llama_import(llama libllama.so SHARED)
llama_import(mtmd libmtmd.so SHARED)
llama_import(common libllama-common.so SHARED)
llama_import(server-context libserver-context.a STATIC)
target_link_libraries(llama::ggml INTERFACE llama::ggml-base)
target_link_libraries(llama::llama INTERFACE llama::ggml)
target_link_libraries(llama::mtmd INTERFACE llama::llama)
target_link_libraries(llama::common INTERFACE llama::llama)
target_include_directories(llama::common SYSTEM INTERFACE ${llama_dir}/include/common ${llama_dir}/include/vendor)
target_link_libraries(llama::server-context INTERFACE llama::common llama::mtmd)
target_include_directories(
  llama::server-context SYSTEM INTERFACE ${llama_dir}/include/server ${llama_dir}/include/mtmd)
