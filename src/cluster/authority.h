#pragma once

#include "base/runtime.h"
#include "cluster/certificate.h"
#include "cluster/join_token.h"
#include "cluster/seal.h"
#include "cluster/store.h"
#include "strata/v1/state.pb.h"

#include <chrono>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace strata::cluster {

struct TokenOptions {
    std::chrono::milliseconds ttl{std::chrono::hours(1)};
    int32_t uses = -1; // any number
};

// What a node gets when it is taken in.
struct Admission {
    std::string name;        // it may have been called otherwise when its name was taken
    std::string certificate; // PEM
};

// The cluster's CA, and who may have a certificate of it: join tokens and nodes. All of it is in the state store, so
// that any number of them may work on one. Thread-safe; calls wait for the store.
class Authority {
public:
    // Makes the CA when the store has none. The seal must be the one that closed its key.
    static absl::StatusOr<std::unique_ptr<Authority>> open(Store & store, const Seal & seal, Runtime & runtime);

    const std::string & cluster() const { return cluster_; }
    const std::string & ca_certificate() const { return ca_.certificate; }
    const Digest & pin() const { return pin_; }

    absl::StatusOr<JoinToken> create_token(const TokenOptions & options);
    // Those that can still be used.
    absl::StatusOr<std::vector<v1::TokenState>> tokens();
    absl::Status revoke_token(std::string_view id); // kNotFound

    // Takes a machine in that has the key of `request` and shows a token. kUnauthenticated: the token is none of this
    // cluster, has expired, was revoked or used up.
    absl::StatusOr<Admission> admit(std::string_view token, std::string_view request, std::string_view wanted_name);
    // The same for the machine that the authority is on, which needs no token.
    absl::StatusOr<Admission> admit_self(std::string_view request, std::string_view wanted_name);

    // Whether a node that shows a certificate of this CA still belongs to the cluster; kUnauthenticated.
    absl::Status check_member(const Subject & subject);
    // A new certificate for a member.
    absl::StatusOr<std::string> renew(const Subject & subject, std::string_view request);
    absl::StatusOr<std::vector<v1::NodeState>> nodes();
    // Admissions of nodes whose certificates have not run out yet, but count no more.
    absl::StatusOr<std::vector<std::string>> removed();
    // Its certificates count no more. kNotFound.
    absl::Status remove_node(std::string_view name);

private:
    Authority(Store & store, Runtime & runtime)
        : store_(store)
        , runtime_(runtime) {}

    absl::StatusOr<v1::NodeState> member(const Subject & subject); // as check_member()
    absl::Status make_authority(const Seal & seal);
    std::string random_hex(size_t bytes);
    int64_t now_ms() const { return unix_ms(runtime_.clock().wall()); }
    absl::StatusOr<std::string> issue_for(const v1::NodeState & node, std::string_view request);
    absl::StatusOr<Admission> admit_with(Transaction transaction, std::string_view token_id, std::string_view request,
                                         std::string_view wanted_name);

    Store & store_;
    Runtime & runtime_;
    std::string cluster_;
    Identity ca_;
    Digest pin_;
};

} // namespace strata::cluster
