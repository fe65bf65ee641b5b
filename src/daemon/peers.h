#pragma once

#include "daemon/engine_client.h"
#include "strata/v1/cluster.pb.h"

#include <grpcpp/security/credentials.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

namespace strata::daemon {

// The other nodes' daemons and what they serve, as of the last heartbeat. Thread-safe; returns at once.
class Peers {
public:
    // A name and the channel's credentials are this node's in its cluster; empty: in none.
    void become(std::string name, std::shared_ptr<grpc::ChannelCredentials> credentials);
    void update(const std::vector<v1::Node> & nodes);
    // This one does not answer.
    void lost(const std::string & name);

    // A node that is ready and has the model (NAME:TAG) loaded, each in turn; null: none. Without a digest any model of
    // that name will do.
    std::shared_ptr<const NodeClient> serving(std::string_view model, std::string_view digest);
    // What is served somewhere, by name.
    std::vector<v1::ServedModel> models() const;

private:
    struct Peer {
        std::shared_ptr<const NodeClient> client;
        v1::Node node;
    };

    mutable std::mutex mutex_;
    std::string here_;
    std::shared_ptr<grpc::ChannelCredentials> credentials_;
    std::map<std::string, Peer> peers_; // by name
    size_t turn_ = 0;
};

} // namespace strata::daemon
