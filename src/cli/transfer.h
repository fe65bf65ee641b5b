#pragma once

#include "cli/command.h"

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace strata::cli {

// What the daemon takes as sources of one import: absolute paths of files that are there, all parts of a split model
// when one of them ("NAME-00001-of-00003.gguf") is given, or one "oci:DIR[:REF]" with an absolute DIR.
absl::StatusOr<std::vector<std::string>> import_sources(const std::vector<std::string> & given);

// Import and pull with a progress bar, or in JSON mode a line for each message of the daemon. An empty name: from the
// file.
absl::StatusOr<v1::Model> import_model(const Context & context, Client & client,
                                       const std::vector<std::string> & sources, const std::string & name);
absl::StatusOr<v1::Model> pull_model(const Context & context, Client & client, const std::string & url,
                                     const std::string & name);

// Whether `run` and `embed` take this for something to import or pull first, and not for the name of a model.
bool is_model_file(std::string_view model); // "….gguf"
bool is_model_url(std::string_view model);  // "hf://…"

// The name of the model that a file, a URL or a name stands for. Files and URLs are imported or pulled unless that was
// done before and the files are the same since (by path, size, time and inode).
absl::StatusOr<std::string> model_for(const Context & context, Client & client, const std::string & model);

} // namespace strata::cli
