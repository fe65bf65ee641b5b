#include "daemon/peers.h"

#include "daemon/limits.h"
#include "daemon/membership.h"

#include <grpcpp/create_channel.h>

#include <algorithm>
#include <utility>

namespace strata::daemon {

namespace {

bool serves(const v1::Node & node, std::string_view model, std::string_view digest) {
    return node.state() == v1::Node::STATE_READY &&
           std::any_of(node.serving().begin(), node.serving().end(), [&](const v1::ServedModel & served) {
               return served.name() == model && (digest.empty() || served.digest() == digest);
           });
}

} // namespace

void Peers::become(std::string name, std::shared_ptr<grpc::ChannelCredentials> credentials) {
    const std::lock_guard lock(mutex_);
    here_ = std::move(name);
    credentials_ = std::move(credentials);
    peers_.clear();
}

void Peers::update(const std::vector<v1::Node> & nodes) {
    const std::lock_guard lock(mutex_);
    std::map<std::string, Peer> now;
    for (const v1::Node & node : nodes) {
        if (node.name() == here_ || node.cluster_address().empty()) continue;
        Peer & peer = now[node.name()];
        const auto known = peers_.find(node.name());
        if (known != peers_.end() && known->second.node.cluster_address() == node.cluster_address()) {
            peer.client = known->second.client;
        } else {
            peer.client = std::make_shared<NodeClient>(
                node.name(),
                grpc::CreateCustomChannel(node.cluster_address(), credentials_, to_a_node(limits::kMessageBytes)));
        }
        peer.node = node;
    }
    peers_ = std::move(now);
}

void Peers::lost(const std::string & name) {
    const std::lock_guard lock(mutex_);
    if (const auto found = peers_.find(name); found != peers_.end())
        found->second.node.set_state(v1::Node::STATE_SILENT);
}

std::shared_ptr<const NodeClient> Peers::serving(std::string_view model, std::string_view digest) {
    const std::lock_guard lock(mutex_);
    std::vector<std::shared_ptr<const NodeClient>> able;
    for (const auto & [name, peer] : peers_) {
        if (serves(peer.node, model, digest)) able.push_back(peer.client);
    }
    return able.empty() ? nullptr : able[turn_++ % able.size()];
}

std::vector<v1::ServedModel> Peers::models() const {
    const std::lock_guard lock(mutex_);
    std::map<std::string, v1::ServedModel> models;
    for (const auto & [name, peer] : peers_) {
        if (peer.node.state() != v1::Node::STATE_READY) continue;
        for (const v1::ServedModel & served : peer.node.serving()) models.emplace(served.name(), served);
    }
    std::vector<v1::ServedModel> list;
    for (auto & [name, model] : models) list.push_back(std::move(model));
    return list;
}

} // namespace strata::daemon
