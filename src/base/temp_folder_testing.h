#pragma once

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <system_error>

namespace strata::testing {

// A folder of its own for a test, that goes away with it.
class TempFolder {
public:
    TempFolder() {
        // In memory where that can be: a test can't see whether a sync reached a disk, and hundreds of them take long.
        const std::filesystem::path memory = "/dev/shm";
        const bool usable = ::access(memory.c_str(), W_OK) == 0;
        std::string form = ((usable ? memory : std::filesystem::temp_directory_path()) / "strata-test-XXXXXX").native();
        if (::mkdtemp(form.data()) == nullptr) std::abort();
        path_ = form;
    }
    ~TempFolder() {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }
    TempFolder(const TempFolder &) = delete;
    TempFolder & operator=(const TempFolder &) = delete;

    const std::filesystem::path & path() const { return path_; }

private:
    std::filesystem::path path_;
};

} // namespace strata::testing
