#include "cluster/authority.h"

#include "base/text.h"
#include "cluster/limits.h"
#include "cluster/record.h"

#include <fmt/format.h>
#include <openssl/crypto.h>

#include <algorithm>

namespace strata::cluster {

namespace {

using std::chrono::hours;
using std::chrono::milliseconds;
using std::chrono::system_clock;

constexpr char kCaKey[] = "ca";
constexpr char kSealedAt[] = "ca.sealedKey"; // where the CA's key is kept
constexpr char kTokens[] = "tokens/";
constexpr char kRemoved[] = "removed/";
constexpr size_t kClusterBytes = 8, kAdmissionBytes = 8;

constexpr hours kCaLifetime{24 * 3650};
constexpr hours kLifetime{24 * 30};
// Clocks differ.
constexpr hours kEarlier{2};
constexpr hours kLongestToken{24 * 366};
constexpr int kTries = 16; // of a transaction that others came before

Validity validity_from(system_clock::time_point now, hours lifetime) {
    return {now - kEarlier, now + lifetime};
}

std::string key_of(std::string_view prefix, std::string_view name) {
    return fmt::format("{}{}", prefix, name);
}

std::string hash_of(std::string_view secret) {
    return Digest::of(secret).hex();
}

absl::Status refused(std::string_view why) {
    return absl::UnauthenticatedError(
        fmt::format("the join token {}; `strata token create` on a node of the cluster makes another one", why));
}

} // namespace

absl::StatusOr<std::unique_ptr<Authority>> Authority::open(Store & store, const Seal & seal, Runtime & runtime) {
    std::unique_ptr<Authority> authority(new Authority(store, runtime));
    auto state = read<v1::CaState>(store, kCaKey);
    if (absl::IsNotFound(state.status())) {
        STRATA_RETURN_IF_ERROR(authority->make_authority(seal)); // perhaps another one's is there by now
        state = read<v1::CaState>(store, kCaKey);
    }
    STRATA_RETURN_IF_ERROR(state.status());
    const v1::CaState & ca = state->value;
    const auto key = seal.open(ca.sealed_key(), kSealedAt);
    if (!key.ok()) {
        return absl::DataLossError("the key of the cluster's CA can't be opened: the file seal.key is not the one it "
                                   "was closed with; put that "
                                   "one back, or begin a new cluster and let all nodes join again");
    }
    authority->cluster_ = ca.cluster();
    authority->ca_ = {ca.certificate(), *key};
    STRATA_ASSIGN_OR_RETURN(authority->pin_, pin_of(ca.certificate()));
    return authority;
}

absl::Status Authority::make_authority(const Seal & seal) {
    v1::CaState state;
    state.set_cluster(random_hex(kClusterBytes));
    STRATA_ASSIGN_OR_RETURN(
        const Identity ca,
        make_ca({.cluster = state.cluster(), .role = "ca", .name = "strata cluster " + state.cluster()},
                validity_from(runtime_.clock().wall(), kCaLifetime)));
    state.set_certificate(ca.certificate);
    STRATA_ASSIGN_OR_RETURN(*state.mutable_sealed_key(), seal.close(ca.key, kSealedAt));
    const absl::Status status =
        store_.commit({.conditions = {{kCaKey, 0}}, .puts = {{kCaKey, encode(state)}}}).status();
    return absl::IsAborted(status) ? absl::OkStatus() : status;
}

std::string Authority::random_hex(size_t bytes) {
    std::vector<uint8_t> random(bytes);
    runtime_.random_bytes(random);
    return fmt::format("{:02x}", fmt::join(random, ""));
}

// -------------------- tokens

absl::StatusOr<JoinToken> Authority::create_token(const TokenOptions & options) {
    if (options.ttl <= milliseconds(0) || options.ttl > kLongestToken) {
        return absl::InvalidArgumentError("a join token lasts longer than no time, and a year at most");
    }
    if (options.uses == 0 || options.uses < -1)
        return absl::InvalidArgumentError("a join token can be used at least once");
    const JoinToken token{random_hex(JoinToken::kIdBytes), random_hex(JoinToken::kSecretBytes), pin_};
    v1::TokenState state;
    state.set_id(token.id);
    state.set_secret_sha256(hash_of(token.secret));
    state.set_created_unix_ms(now_ms());
    state.set_expires_unix_ms(now_ms() + options.ttl.count());
    state.set_uses_left(options.uses);
    const std::string key = key_of(kTokens, token.id);
    STRATA_ASSIGN_OR_RETURN(const auto all, read_all<v1::TokenState>(store_, kTokens));
    Transaction transaction{.conditions = {{key, 0}}, .puts = {{key, encode(state)}}};
    for (const auto & old : all) { // nobody else clears away what can't be used
        if (transaction.removals.size() + 2 >= limits::kTransactionKeys) break;
        if (old.value.expires_unix_ms() <= now_ms()) transaction.removals.push_back(key_of(kTokens, old.value.id()));
    }
    STRATA_RETURN_IF_ERROR(store_.commit(transaction).status());
    return token;
}

absl::StatusOr<std::vector<v1::TokenState>> Authority::tokens() {
    STRATA_ASSIGN_OR_RETURN(const auto records, read_all<v1::TokenState>(store_, kTokens));
    std::vector<v1::TokenState> tokens;
    for (const auto & record : records) {
        if (record.value.expires_unix_ms() > now_ms() && record.value.uses_left() != 0) tokens.push_back(record.value);
    }
    return tokens;
}

absl::Status Authority::revoke_token(std::string_view id) {
    const std::string key = key_of(kTokens, printable(id));
    const auto found = read<v1::TokenState>(store_, key);
    if (absl::IsNotFound(found.status())) {
        return absl::NotFoundError(fmt::format("there is no join token {}", printable(id)));
    }
    STRATA_RETURN_IF_ERROR(found.status());
    return store_.commit({.removals = {key}}).status();
}

// -------------------- nodes

absl::StatusOr<Admission> Authority::admit(std::string_view token_text, std::string_view request,
                                           std::string_view wanted_name) {
    const auto token = JoinToken::parse(token_text);
    if (!token.ok()) return absl::UnauthenticatedError(token.status().message());
    for (int i = 0; i < kTries; ++i) {
        const std::string key = key_of(kTokens, token->id);
        auto record = read<v1::TokenState>(store_, key);
        if (absl::IsNotFound(record.status()))
            return refused("is not known here: it is another cluster's, or was revoked");
        STRATA_RETURN_IF_ERROR(record.status());
        v1::TokenState & state = record->value;
        const std::string hash = hash_of(token->secret);
        if (state.secret_sha256().size() != hash.size() ||
            CRYPTO_memcmp(state.secret_sha256().data(), hash.data(), hash.size()) != 0) {
            return refused("is not known here: it is another cluster's, or was revoked");
        }
        if (token->pin != pin_) return refused("is another cluster's");
        if (state.expires_unix_ms() <= now_ms()) return refused("has expired");
        if (state.uses_left() == 0) return refused("was used as often as it may be");
        Transaction transaction{.conditions = {{key, record->revision}}};
        if (state.uses_left() > 0) {
            state.set_uses_left(state.uses_left() - 1);
            transaction.puts.push_back({key, encode(state)});
        }
        auto admission = admit_with(std::move(transaction), token->id, request, wanted_name);
        if (!absl::IsAborted(admission.status())) return admission;
    }
    return absl::AbortedError("too many machines join at once; try it again");
}

absl::StatusOr<Admission> Authority::admit_self(std::string_view request, std::string_view wanted_name) {
    for (int i = 0; i < kTries; ++i) {
        auto admission = admit_with({}, "", request, wanted_name);
        if (!absl::IsAborted(admission.status())) return admission;
    }
    return absl::AbortedError("too many machines join at once; try it again");
}

absl::StatusOr<Admission> Authority::admit_with(Transaction transaction, std::string_view token_id,
                                                std::string_view request, std::string_view wanted_name) {
    STRATA_RETURN_IF_ERROR(check_node_name(wanted_name));
    STRATA_ASSIGN_OR_RETURN(const auto nodes, read_all<v1::NodeState>(store_, kNodes));
    const auto taken = [&](const std::string & name) {
        return std::any_of(nodes.begin(), nodes.end(), [&](const auto & node) { return node.value.name() == name; });
    };
    v1::NodeState node;
    node.set_name(wanted_name.data(), wanted_name.size());
    for (int number = 2; taken(node.name()); ++number) {
        const std::string suffix = fmt::format("-{}", number);
        node.set_name(fmt::format("{}{}", wanted_name.substr(0, limits::kNodeNameBytes - suffix.size()), suffix));
    }
    node.set_admission(random_hex(kAdmissionBytes));
    node.set_joined_unix_ms(now_ms());
    node.set_token(token_id.data(), token_id.size());
    STRATA_ASSIGN_OR_RETURN(std::string certificate, issue_for(node, request));
    const std::string key = key_of(kNodes, node.name());
    transaction.conditions.push_back({key, 0});
    transaction.puts.push_back({key, encode(node)});
    STRATA_RETURN_IF_ERROR(store_.commit(transaction).status());
    return Admission{node.name(), std::move(certificate)};
}

absl::StatusOr<std::string> Authority::issue_for(const v1::NodeState & node, std::string_view request) {
    STRATA_ASSIGN_OR_RETURN(
        const std::string certificate,
        issue(ca_, request, {.cluster = cluster_, .role = "node", .name = node.name(), .admission = node.admission()},
              validity_from(runtime_.clock().wall(), kLifetime)));
    // With the CA's behind it: who joins knows the CA by its pin, and gets it from here.
    return certificate + ca_.certificate;
}

absl::StatusOr<v1::NodeState> Authority::member(const Subject & subject) {
    if (subject.cluster != cluster_ || subject.role != "node") {
        return absl::UnauthenticatedError(
            fmt::format("\"{}\" has no certificate of a node of this cluster", printable(subject.name)));
    }
    const auto node = check_node_name(subject.name).ok() ? read<v1::NodeState>(store_, key_of(kNodes, subject.name))
                                                         : absl::NotFoundError("");
    if (node.ok() && node->value.admission() == subject.admission) return node->value;
    if (!node.ok() && !absl::IsNotFound(node.status())) return node.status();
    return absl::UnauthenticatedError(fmt::format(
        "{} was removed from the cluster; `strata join` with a new token takes it in again", printable(subject.name)));
}

absl::Status Authority::check_member(const Subject & subject) {
    return member(subject).status();
}

absl::StatusOr<std::string> Authority::renew(const Subject & subject, std::string_view request) {
    STRATA_ASSIGN_OR_RETURN(const v1::NodeState node, member(subject));
    return issue_for(node, request);
}

absl::StatusOr<std::vector<v1::NodeState>> Authority::nodes() {
    STRATA_ASSIGN_OR_RETURN(const auto records, read_all<v1::NodeState>(store_, kNodes));
    std::vector<v1::NodeState> nodes;
    for (const auto & record : records) nodes.push_back(record.value);
    return nodes;
}

absl::StatusOr<std::vector<std::string>> Authority::removed() {
    STRATA_ASSIGN_OR_RETURN(const Listing listing, store_.list(kRemoved));
    std::vector<std::string> admissions;
    Transaction old;
    for (const Entry & entry : listing.entries) {
        STRATA_ASSIGN_OR_RETURN(const auto record, decode<v1::RemovedState>(entry));
        if (record.value.until_unix_ms() > now_ms()) {
            admissions.push_back(entry.key.substr(std::string_view(kRemoved).size()));
        } else if (old.removals.size() < limits::kTransactionKeys) {
            old.removals.push_back(entry.key);
        }
    }
    if (!old.removals.empty()) STRATA_RETURN_IF_ERROR(store_.commit(old).status());
    return admissions;
}

absl::Status Authority::remove_node(std::string_view name) {
    const auto node =
        check_node_name(name).ok() ? read<v1::NodeState>(store_, key_of(kNodes, name)) : absl::NotFoundError("");
    if (absl::IsNotFound(node.status())) {
        return absl::NotFoundError(
            fmt::format("the cluster has no node \"{}\"; `strata nodes` lists them", printable(name)));
    }
    STRATA_RETURN_IF_ERROR(node.status());
    v1::RemovedState removed;
    removed.set_name(node->value.name());
    removed.set_until_unix_ms(now_ms() + std::chrono::duration_cast<milliseconds>(kLifetime + kEarlier).count());
    const std::string key = key_of(kNodes, name);
    return store_
        .commit({.conditions = {{key, node->revision}},
                 .puts = {{key_of(kRemoved, node->value.admission()), encode(removed)}},
                 .removals = {key}})
        .status();
}

} // namespace strata::cluster
