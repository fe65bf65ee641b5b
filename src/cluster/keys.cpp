#include "cluster/keys.h"

#include "base/text.h"
#include "cluster/limits.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

namespace strata::cluster {

std::string behind(std::string_view prefix) {
    std::string key(prefix);
    if (key.empty()) return "\x7f";
    key.back() = static_cast<char>(key.back() + 1);
    return key;
}

absl::Status check_key(std::string_view key) {
    const bool fits = !key.empty() && key.size() <= limits::kKeyBytes &&
                      std::all_of(key.begin(), key.end(), [](char c) { return c > ' ' && c < '\x7f'; });
    if (fits) return absl::OkStatus();
    return absl::InvalidArgumentError(fmt::format("\"{}\" can't be a key of the state store: 1 to {} visible ASCII "
                                                  "characters can",
                                                  printable(key), limits::kKeyBytes));
}

absl::Status check(const Transaction & transaction) {
    std::set<std::string_view> written;
    const auto check_written = [&](const std::string & key) -> absl::Status {
        STRATA_RETURN_IF_ERROR(check_key(key));
        if (written.insert(key).second) return absl::OkStatus();
        return absl::InvalidArgumentError(fmt::format("{} is written twice in one transaction", key));
    };
    if (transaction.conditions.size() + transaction.puts.size() + transaction.removals.size() >
        limits::kTransactionKeys) {
        return absl::InvalidArgumentError(fmt::format("a transaction has at most {} keys", limits::kTransactionKeys));
    }
    for (const auto & condition : transaction.conditions) STRATA_RETURN_IF_ERROR(check_key(condition.key));
    for (const auto & put : transaction.puts) {
        STRATA_RETURN_IF_ERROR(check_written(put.key));
        if (put.value.size() > limits::kValueBytes) {
            return absl::InvalidArgumentError(fmt::format("the value of {} has {} bytes, the limit is {}", put.key,
                                                          put.value.size(), limits::kValueBytes));
        }
    }
    for (const std::string & key : transaction.removals) STRATA_RETURN_IF_ERROR(check_written(key));
    return absl::OkStatus();
}

absl::Status check_lease_time(int64_t ttl_ms) {
    if (ttl_ms >= limits::kShortestLeaseMs && ttl_ms <= limits::kLongestLeaseMs) return absl::OkStatus();
    return absl::InvalidArgumentError(
        fmt::format("a lease takes {} to {} ms, not {}", limits::kShortestLeaseMs, limits::kLongestLeaseMs, ttl_ms));
}

} // namespace strata::cluster
