#pragma once

#include "base/status.h"

#include <absl/functional/function_ref.h>
#include <openssl/types.h>
#include <sys/uio.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

namespace strata::wire {

// What this engine shows its peers, and whom it takes for one: whoever has a certificate of the same CA, whatever name
// is in it. Immutable.
class TlsContext {
public:
    // Reads a folder, once: ca.pem (the CA's certificates), cert.pem (this engine's, and those between the two),
    // key.pem (its private key, which nobody else may read). An error says what is wrong with which file.
    static absl::StatusOr<std::shared_ptr<const TlsContext>> load(const std::filesystem::path & folder);
    // The same one, or, when there are other files in its folder by now, theirs; if those are of no use, still the
    // same.
    static std::shared_ptr<const TlsContext> renewed(std::shared_ptr<const TlsContext> context);

private:
    friend class TlsStream;
    // Tells files from those that replaced them; equal when there are none.
    struct Stamp {
        uint64_t device = 0, inode = 0;
        int64_t changed_s = 0, changed_ns = 0;
        bool operator==(const Stamp &) const = default;
    };
    static Stamp stamp_of(const std::filesystem::path & folder);

    struct Free {
        void operator()(SSL_CTX * context) const;
    };
    TlsContext() = default;

    std::filesystem::path folder_;
    Stamp stamp_;
    std::unique_ptr<SSL_CTX, Free> context_;
};

// TLS 1.3 of one connection, without the connection: bytes in, bytes out. One thread does the handshake and reads; one
// at a time writes, also while the other reads.
class TlsStream {
public:
    TlsStream(std::shared_ptr<const TlsContext> context, bool accepted, std::string peer);
    ~TlsStream();

    using Send = absl::FunctionRef<void(std::span<const uint8_t>)>;

    // Where bytes from the network are put, and how many were. When more has to arrive, not before.
    std::span<uint8_t> room();
    void arrived(size_t bytes);

    // Goes on with the handshake; false: more has to arrive. Sends also when it fails, so that the peer learns why.
    // kFailedPrecondition: what arrived is no TLS.
    absl::StatusOr<bool> handshake(Send send);
    // What has arrived, as far as it fits; 0: more has to arrive.
    absl::StatusOr<size_t> read(std::span<uint8_t> into);

    // After the handshake. `send` gets records, in order; small pieces share them, what is large is not copied first.
    absl::Status write(std::span<const iovec> pieces, Send send);

private:
    struct Hooks; // what OpenSSL calls
    struct Free {
        void operator()(SSL * ssl) const;
    };

    absl::Status encrypt(std::span<const uint8_t> bytes);
    void send_records(Send send);
    absl::Status failure(int error) const; // mutex_ held

    const std::shared_ptr<const TlsContext> context_;
    const std::string peer_;

    // Of the reading thread.
    const std::unique_ptr<uint8_t[]> arrived_;
    size_t begin_ = 0, end_ = 0; // of what OpenSSL has not taken yet
    bool begun_ = false;

    // Of the writing thread.
    std::vector<uint8_t> pack_;    // pieces that share a record
    std::vector<uint8_t> sending_; // records
    size_t records_ = 0;           // since the last new key

    std::mutex mutex_; // held for a few records
    std::unique_ptr<SSL, Free> ssl_;
    std::vector<uint8_t> out_; // records
    std::string refused_;      // why the peer's certificate was
};

} // namespace strata::wire
