#pragma once

#include "base/status.h"

#include <string_view>

namespace strata::engine {

// Whether llama.cpp's GBNF parser can be given this text. The parser reports plain mistakes by itself, but it calls
// itself for each nested group and along each chain of rules, so that a hostile grammar overflows the stack (as
// CVE-2026-2069 did), and it aborts the process on "%llguidance". Those are kInvalidArgument here, before it runs.
absl::Status check_grammar(std::string_view grammar);

} // namespace strata::engine
