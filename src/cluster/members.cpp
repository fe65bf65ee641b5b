#include "cluster/members.h"

#include "base/address.h"
#include "base/text.h"
#include "cluster/authority.h"
#include "cluster/limits.h"
#include "cluster/record.h"

#include <fmt/format.h>

namespace strata::cluster {

namespace {

constexpr char kStatus[] = "status/";

absl::Status check(const v1::Node & node) {
    if (node.ByteSizeLong() > limits::kNodeStatusBytes) {
        return absl::InvalidArgumentError(
            fmt::format("node {} says more than {} bytes of itself", printable(node.name()), limits::kNodeStatusBytes));
    }
    for (const std::string & address : {node.cluster_address(), node.executor_address()}) {
        if (!address.empty()) STRATA_RETURN_IF_ERROR(Address::parse(address, 0).status());
    }
    return absl::OkStatus();
}

} // namespace

absl::Status Members::heard(const v1::Node & node) {
    STRATA_RETURN_IF_ERROR(check(node));
    const std::string status = encode(node);
    Heard known;
    {
        const std::lock_guard lock(mutex_);
        Heard & mine = heard_[node.name()];
        mine.at = runtime_.clock().now();
        known = mine;
    }
    if (known.lease != 0 && store_.renew_lease(known.lease).ok() && known.status == status) return absl::OkStatus();
    if (known.lease == 0 || !store_.renew_lease(known.lease).ok()) {
        STRATA_ASSIGN_OR_RETURN(known.lease, store_.grant_lease(kSilent.count()));
    }
    STRATA_RETURN_IF_ERROR(store_.commit({.puts = {{kStatus + node.name(), status, known.lease}}}).status());
    const std::lock_guard lock(mutex_);
    heard_[node.name()] = {known.lease, status, runtime_.clock().now()};
    return absl::OkStatus();
}

absl::StatusOr<std::vector<v1::Node>> Members::list() {
    STRATA_ASSIGN_OR_RETURN(const auto nodes, read_all<v1::NodeState>(store_, kNodes));
    STRATA_ASSIGN_OR_RETURN(const auto there, read_all<v1::Node>(store_, kStatus));
    std::map<std::string, v1::Node> by_name;
    for (const auto & record : nodes) {
        v1::Node & node = by_name[record.value.name()];
        node.set_name(record.value.name());
        node.set_state(v1::Node::STATE_SILENT);
    }
    for (const auto & record : there) {
        const auto found = by_name.find(record.value.name());
        if (found == by_name.end()) continue; // removed a moment ago
        found->second = record.value;
        found->second.set_state(v1::Node::STATE_READY);
    }
    std::vector<v1::Node> list;
    const std::lock_guard lock(mutex_);
    for (auto & [name, node] : by_name) {
        if (const auto found = heard_.find(name); found != heard_.end()) {
            const auto ago = runtime_.clock().now() - found->second.at;
            node.set_heard_ms_ago(std::chrono::duration_cast<std::chrono::milliseconds>(ago).count());
        }
        list.push_back(std::move(node));
    }
    return list;
}

} // namespace strata::cluster
