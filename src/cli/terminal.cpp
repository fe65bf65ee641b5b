#include "cli/terminal.h"

#include <termios.h>
#include <unistd.h>

#include <mutex>
#include <optional>

namespace strata::cli {

namespace {
std::mutex mutex;
std::optional<termios> original; // guarded by mutex; set while the echo is off
} // namespace

EchoOff::EchoOff() {
    const std::lock_guard lock(mutex);
    termios settings{};
    if (::tcgetattr(STDIN_FILENO, &settings) != 0) return;
    original = settings;
    settings.c_lflag &= ~static_cast<tcflag_t>(ECHO);
    ::tcsetattr(STDIN_FILENO, TCSADRAIN, &settings);
}

EchoOff::~EchoOff() {
    restore_terminal();
}

void restore_terminal() {
    const std::lock_guard lock(mutex);
    if (original) ::tcsetattr(STDIN_FILENO, TCSADRAIN, &*original);
    original.reset();
}

} // namespace strata::cli
