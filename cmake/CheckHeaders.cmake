# Every header compiles by itself: the target strata_checkheaders compiles a file per header that includes nothing else.
if(STRATA_CHECK_HEADERS)
  file(GLOB_RECURSE headers CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/*.h ${PROJECT_SOURCE_DIR}/include/*.h)
  set(units)
  foreach(header ${headers})
    file(RELATIVE_PATH name ${PROJECT_SOURCE_DIR} ${header})
    string(MAKE_C_IDENTIFIER ${name} id)
    set(unit ${PROJECT_BINARY_DIR}/checkheaders/${id}.cpp)
    file(CONFIGURE OUTPUT ${unit} CONTENT "#include \"@header@\"\n" @ONLY)
    list(APPEND units ${unit})
  endforeach()
  add_library(strata_checkheaders OBJECT ${units})
  target_include_directories(strata_checkheaders PRIVATE ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}/include)
  target_link_libraries(
    strata_checkheaders PRIVATE strata_proto strata_asio llama::server-context spdlog::spdlog CURL::libcurl
                                SQLite::SQLite3 OpenSSL::Crypto absl::statusor absl::strings absl::flat_hash_map
                                nlohmann_json::nlohmann_json prometheus-cpp::core CLI11::CLI11)
endif()
