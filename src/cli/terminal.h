#pragma once

namespace strata::cli {

// While it lives, the terminal does not show what is typed (it is kept for who reads next), so that typing ahead does
// not mix with an answer that is being printed. Does nothing when stdin is no terminal. One at a time.
class EchoOff {
public:
    EchoOff();
    ~EchoOff();
    EchoOff(const EchoOff &) = delete;
    EchoOff & operator=(const EchoOff &) = delete;
};

// Gives the terminal back as it was, before the program ends without unwinding. From any thread.
void restore_terminal();

} // namespace strata::cli
