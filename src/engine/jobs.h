#pragma once

#include <string>
#include <vector>

namespace strata::engine {

// Work on the layer store in a process of its own, so that a hostile file can end no other. Each function prints its
// progress as lines of JSON on stdout, {"phase":…,"done":…,"total":…}, and one last line:
//   {"finished":true,"name":"m:latest","digest":"sha256:…"}    import, pull
//   {"finished":true,"problems":["…"]}                         verify
//   {"error":{"code":"INVALID_ARGUMENT","message":"…"}}        any, with exit code 1
// and returns the exit code. SIGTERM and SIGINT cancel.
int run_import(const std::string & store, const std::string & name, const std::vector<std::string> & sources);
int run_pull(const std::string & store, const std::string & name, const std::string & url);
int run_verify(const std::string & store, const std::string & model);

} // namespace strata::engine
