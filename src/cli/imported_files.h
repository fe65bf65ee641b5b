#pragma once

#include "base/home.h"
#include "base/status.h"

#include <optional>
#include <string>
#include <vector>

namespace strata::cli {

// Remembers which files became which model, so that `strata run FILE.gguf` need not hash gigabytes to find out that it
// knows them. Kept in a small file in the home; losing it costs an import that changes nothing.
class ImportedFiles {
public:
    struct Entry {
        std::string model;  // NAME:TAG
        std::string digest; // that the name had after the import
    };

    explicit ImportedFiles(const Home & home)
        : path_(home.root / "imported-files.json") {}

    // None when the files were not imported, or have changed since.
    std::optional<Entry> find(const std::vector<std::string> & files) const;
    void remember(const std::vector<std::string> & files, const Entry & entry) const;

    // Of paths, sizes, times and inodes; empty when a file can't be looked at.
    static std::string fingerprint(const std::vector<std::string> & files);

private:
    std::filesystem::path path_;
};

} // namespace strata::cli
