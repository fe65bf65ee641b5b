# `make install`: a relocatable tree. Programs find their libraries by $ORIGIN, llama.cpp's CPU variants lie beside libggml.so.
set(llama_lib ${STRATA_LLAMA_PREFIX}/lib)
foreach(target strata-cli stratad strata-engine strata ggml-strata)
  if(TARGET ${target})
    install(TARGETS ${target} RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
  endif()
endforeach()
install(DIRECTORY include/strata DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(FILES proto/strata/v1/engine.proto proto/strata/v1/cluster.proto proto/strata/v1/models.proto
              proto/strata/v1/deployments.proto DESTINATION ${CMAKE_INSTALL_DATADIR}/strata/proto/strata/v1)
install(DIRECTORY ${llama_lib}/ DESTINATION ${CMAKE_INSTALL_LIBDIR} USE_SOURCE_PERMISSIONS
        FILES_MATCHING PATTERN "*.so*")
install(FILES ${STRATA_LLAMA_PREFIX}/LICENSE DESTINATION ${CMAKE_INSTALL_DATADIR}/strata RENAME LICENSE.llama.cpp)
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DATADIR}/strata)
