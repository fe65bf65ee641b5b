#pragma once

#include "base/check.h"
#include "cluster/store.h"

#include <fmt/format.h>
#include <google/protobuf/util/json_util.h>

#include <string>
#include <string_view>

// Values of the state store: messages of proto/strata/v1/state.proto as JSON, so that people and newer releases can
// read them.
namespace strata::cluster {

inline constexpr char kNodes[] = "nodes/"; // of NodeState

template <typename Message>
struct Record {
    Message value;
    int64_t revision = 0; // 0: there is none yet
};

template <typename Message>
absl::StatusOr<Record<Message>> decode(const Entry & entry) {
    Record<Message> record;
    google::protobuf::util::JsonParseOptions lenient;
    lenient.ignore_unknown_fields = true; // of a newer release
    const auto parsed = google::protobuf::util::JsonStringToMessage(entry.value, &record.value, lenient);
    if (!parsed.ok()) {
        return absl::DataLossError(
            fmt::format("the state store's value of {} can't be read: {}", entry.key, parsed.ToString()));
    }
    record.revision = entry.revision;
    return record;
}

template <typename Message>
std::string encode(const Message & message) {
    std::string text;
    // Fails only for messages that can't be written as JSON at all.
    STRATA_CHECK(google::protobuf::util::MessageToJsonString(message, &text).ok());
    return text;
}

// kNotFound when there is none.
template <typename Message>
absl::StatusOr<Record<Message>> read(Store & store, const std::string & key) {
    STRATA_ASSIGN_OR_RETURN(const std::optional<Entry> entry, store.get(key));
    if (!entry) return absl::NotFoundError(fmt::format("the state store has no {}", key));
    return decode<Message>(*entry);
}

template <typename Message>
absl::StatusOr<std::vector<Record<Message>>> read_all(Store & store, std::string_view prefix) {
    STRATA_ASSIGN_OR_RETURN(const Listing listing, store.list(prefix));
    std::vector<Record<Message>> records;
    for (const Entry & entry : listing.entries) {
        STRATA_ASSIGN_OR_RETURN(records.emplace_back(), decode<Message>(entry));
    }
    return records;
}

} // namespace strata::cluster
