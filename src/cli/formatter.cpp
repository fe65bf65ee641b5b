#include "cli/formatter.h"

#include <fmt/format.h>

namespace strata::cli {

HelpFormatter::HelpFormatter() {
    column_width(28);
    label("Positionals", "Arguments");
}

std::string HelpFormatter::make_usage(const CLI::App * app, std::string name) const {
    std::string usage = "\nUsage: " + name;
    if (app->get_parent() == nullptr) return usage + " COMMAND [OPTIONS]\n";
    const bool options = !app->get_options([&](const CLI::Option * option) {
                                 return option->nonpositional() && option != app->get_help_ptr();
                             })
                              .empty();
    if (options) usage += " [OPTIONS]";
    for (const CLI::Option * option : app->get_options([](const CLI::Option * o) { return o->get_positional(); })) {
        usage += " " + make_option_usage(option);
    }
    return usage + "\n";
}

std::string HelpFormatter::make_subcommand(const CLI::App * command) const {
    const std::string description = command->get_description();
    return fmt::format("  {:<{}}{}\n", command->get_name(), get_column_width() - 2,
                       description.substr(0, description.find('\n')));
}

std::string HelpFormatter::make_option_opts(const CLI::Option * option) const {
    if (option->get_positional() || option->get_type_size() == 0) return {};
    return " " + option->get_type_name();
}

std::string HelpFormatter::make_footer(const CLI::App * app) const {
    std::string footer = app->get_footer() + "\n";
    if (app->get_parent() != nullptr) {
        footer += "\nEvery command takes --home, --json, --no-color and --no-start; see `strata --help`.\n";
    }
    return footer;
}

} // namespace strata::cli
