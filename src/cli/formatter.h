#pragma once

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>

#include <string>

namespace strata::cli {

// The look of --help: short lines, one line for each command, types in plain words.
class HelpFormatter : public CLI::Formatter {
public:
    HelpFormatter();

    std::string make_usage(const CLI::App * app, std::string name) const override;
    std::string make_subcommand(const CLI::App * command) const override;
    std::string make_option_opts(const CLI::Option * option) const override;
    std::string make_footer(const CLI::App * app) const override;
};

} // namespace strata::cli
