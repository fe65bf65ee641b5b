#pragma once

#include "base/temp_folder_testing.h"

#include <sys/types.h>

#include <filesystem>
#include <string>
#include <vector>

namespace strata::cluster {

// A real etcd of some members on this machine, gone with the object. Failures abort.
class EtcdCluster {
public:
    // With TLS, both sides show certificates; tls() is a client's folder.
    explicit EtcdCluster(int members, bool tls = false);
    ~EtcdCluster();
    EtcdCluster(const EtcdCluster &) = delete;
    EtcdCluster & operator=(const EtcdCluster &) = delete;

    std::vector<std::string> endpoints() const;
    std::filesystem::path tls() const { return tls_ ? folder_.path() / "tls" : std::filesystem::path(); }
    void kill(size_t member);
    void restart(size_t member);

private:
    struct Member {
        pid_t pid = 0;
        int client_port = 0, peer_port = 0;
    };

    strata::testing::TempFolder folder_;
    const bool tls_;
    std::string program_;
    std::vector<Member> members_;
};

} // namespace strata::cluster
