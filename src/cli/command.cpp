#include "cli/command.h"

#include "cli/daemon.h"

namespace strata::cli {

namespace {
constexpr char kUsagePayload[] = "strata/usage";
} // namespace

absl::StatusOr<Client> Context::client_or_start() const {
    if (!daemon_listens(home) && may_start_daemon) STRATA_RETURN_IF_ERROR(start_daemon(home, {}, output));
    return Client::connect(home);
}

absl::Status usage_error(std::string_view message) {
    absl::Status status = absl::InvalidArgumentError(std::string(message));
    status.SetPayload(kUsagePayload, absl::Cord("1"));
    return status;
}

bool is_usage_error(const absl::Status & status) {
    return status.GetPayload(kUsagePayload).has_value();
}

CLI::App & Commands::add(const std::string & group, const std::string & name, const std::string & description,
                         const std::string & examples, Action action) {
    CLI::App & command = *app_.add_subcommand(name, description);
    command.group(group);
    command.footer("Examples:\n" + examples);
    command.fallthrough(); // so that --json and the like may stand anywhere
    command.callback([this, action = std::move(action)] { chosen_ = action; });
    return command;
}

} // namespace strata::cli
