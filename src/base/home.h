#pragma once

#include <filesystem>
#include <string_view>

namespace strata {

// Where a node keeps its things. Every path is absolute.
struct Home {
    std::filesystem::path root;

    // $STRATA_HOME, else $XDG_DATA_HOME/strata, else ~/.local/share/strata. `given` (a --home option) goes first.
    static Home find(std::string_view given = {});

    std::filesystem::path store() const { return root / "store"; }       // the layer store, an OCI image layout
    std::filesystem::path views() const { return root / "views"; }       // split-GGUF views of models, symlinks
    std::filesystem::path state_db() const { return root / "state.db"; } // SQLite
    std::filesystem::path cluster() const { return root / "cluster"; }   // certificates; the state store, where it is
    std::filesystem::path logs() const { return root / "logs"; }
    std::filesystem::path run() const { return root / "run"; } // sockets and the pid file
    // Unix socket paths end at 107 bytes; a long home puts its sockets into a folder in /tmp named by the home's hash.
    std::filesystem::path sockets() const;
    std::filesystem::path daemon_socket() const { return sockets() / "stratad.sock"; }
};

} // namespace strata
