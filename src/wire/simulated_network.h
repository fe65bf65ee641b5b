#pragma once

#include "wire/network.h"
#include "wire/simulation.h"

#include <list>
#include <map>
#include <string>
#include <vector>

namespace strata::wire {

class SimulatedEnd;

// Machines of a simulation, and what is between them: each pair has a latency and a rate of its own; the frames of one
// connection stay in order, those of different ones do not; machines crash. Not thread-safe.
class SimulatedNetwork {
public:
    explicit SimulatedNetwork(Simulation & simulation)
        : simulation_(simulation) {}
    ~SimulatedNetwork();
    SimulatedNetwork(const SimulatedNetwork &) = delete;
    SimulatedNetwork & operator=(const SimulatedNetwork &) = delete;

    class Machine : public Network {
    public:
        Machine(SimulatedNetwork & network, std::string name)
            : network_(network)
            , name_(std::move(name)) {}

        absl::StatusOr<std::shared_ptr<Channel>> connect(const std::string & address,
                                                         std::shared_ptr<ChannelHandler> handler) override;
        // The machine's only address is its name.
        absl::StatusOr<std::string> listen(const std::string & address, std::shared_ptr<Acceptor> acceptor) override;

        // All is over at once. Some of what it sent still arrives; then its peers learn of it, some of them late.
        void crash();
        // After a crash: it connects and listens again.
        void restart() { up_ = true; }
        bool up() const { return up_; }

    private:
        friend class SimulatedEnd;
        friend class SimulatedNetwork;

        SimulatedNetwork & network_;
        const std::string name_;
        bool up_ = true;
        std::shared_ptr<Acceptor> acceptor_;
        std::vector<std::weak_ptr<SimulatedEnd>> ends_;
    };

    // Lives as long as the network.
    Machine & add(std::string name);
    // What machines told others at the end of a connection when something was wrong.
    const std::vector<std::string> & refusals() const { return refusals_; }

private:
    friend class SimulatedEnd;
    struct Path {
        std::chrono::nanoseconds latency;
        uint64_t bytes_per_second;
    };
    const Path & path(const std::string & from, const std::string & to);

    Simulation & simulation_;
    std::list<Machine> machines_;
    std::map<std::pair<std::string, std::string>, Path> paths_;
    std::vector<std::string> refusals_;
};

} // namespace strata::wire
