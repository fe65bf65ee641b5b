#include "daemon/placement.h"

#include "base/text.h"

#include <fmt/format.h>

#include <algorithm>

namespace strata::daemon {

absl::StatusOr<std::vector<std::string>> choose_executors(const std::vector<v1::Node> & nodes, std::string_view here,
                                                          std::string_view engine_build, int32_t count) {
    std::vector<std::string> executors;
    std::string own, lacking;
    for (const v1::Node & node : nodes) {
        std::string lack;
        if (node.state() != v1::Node::STATE_READY) {
            lack = "is silent";
        } else if (node.engine_build() != engine_build) {
            lack = fmt::format("has engine build {}, not {}", printable(node.engine_build()), engine_build);
        } else if (node.executor_address().empty()) {
            lack = "has no executor that runs";
        }
        if (!lack.empty()) {
            lacking += fmt::format("; {} {}", node.name(), lack);
        } else if (node.name() == here) {
            own = node.executor_address();
        } else {
            executors.push_back(node.executor_address());
        }
    }
    const size_t ready = executors.size() + (own.empty() ? 0 : 1);
    const size_t wanted = count < 0 ? std::max<size_t>(ready, 1) : static_cast<size_t>(count);
    if (wanted > ready) {
        return absl::FailedPreconditionError(
            nodes.empty() ? "this node is in no cluster; `strata join` takes it into one"
                          : fmt::format("{} nodes are wanted, {} are ready{}", wanted, ready, lacking));
    }
    if (own.empty()) {
        executors.resize(wanted);
    } else {
        executors.resize(wanted - 1);
        executors.push_back(own);
    }
    return executors;
}

} // namespace strata::daemon
