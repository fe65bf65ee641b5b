#include "cli/imported_files.h"

#include "base/digest.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <iterator>

namespace strata::cli {

namespace {

// Keeps insertion order, so that the oldest entry can go when there are too many.
using Json = nlohmann::ordered_json;

constexpr size_t kMaxEntries = 1000;
constexpr uintmax_t kMaxFileBytes = 4 << 20;

Json read_entries(const std::filesystem::path & path) {
    std::error_code error;
    if (std::filesystem::file_size(path, error) > kMaxFileBytes || error) return Json::object();
    std::ifstream in(path, std::ios::binary);
    const std::string text{std::istreambuf_iterator<char>(in), {}};
    Json json = Json::parse(text, nullptr, false);
    return json.is_object() ? json : Json::object();
}

} // namespace

std::string ImportedFiles::fingerprint(const std::vector<std::string> & files) {
    std::string facts;
    for (const std::string & file : files) {
        struct stat info {};
        if (::stat(file.c_str(), &info) != 0 || !S_ISREG(info.st_mode)) return {};
        facts += fmt::format("{}\n{} {} {} {}.{:09}\n", file, info.st_size, info.st_dev, info.st_ino,
                             info.st_mtim.tv_sec, info.st_mtim.tv_nsec);
    }
    return Digest::of(facts).hex();
}

std::optional<ImportedFiles::Entry> ImportedFiles::find(const std::vector<std::string> & files) const {
    const Json entries = read_entries(path_);
    const auto found = entries.find(fingerprint(files));
    if (found == entries.end() || !found->is_object()) return std::nullopt;
    const auto text = [&](const char * key) {
        const auto value = found->find(key);
        return value != found->end() && value->is_string() ? value->get<std::string>() : std::string();
    };
    Entry entry{text("model"), text("digest")};
    if (entry.model.empty() || entry.digest.empty()) return std::nullopt;
    return entry;
}

void ImportedFiles::remember(const std::vector<std::string> & files, const Entry & entry) const {
    const std::string key = fingerprint(files);
    if (key.empty()) return;
    Json entries = read_entries(path_);
    entries.erase(key);
    while (entries.size() >= kMaxEntries) entries.erase(entries.begin());
    entries[key] = {{"model", entry.model}, {"digest", entry.digest}};

    // By rename, so that a reader never sees half of it. It is a cache: failing to write it is no failure.
    const std::filesystem::path temporary = fmt::format("{}.{}", path_.native(), ::getpid());
    std::ofstream out(temporary, std::ios::binary | std::ios::trunc);
    out << entries.dump(1, ' ', false, Json::error_handler_t::replace);
    out.close();
    std::error_code ignored;
    if (out) std::filesystem::rename(temporary, path_, ignored);
    if (!out || ignored) std::filesystem::remove(temporary, ignored);
}

} // namespace strata::cli
