"""A server that behaves like the model hub: files resolve by redirect to a second host (here: another port), large files carry
their SHA-256 as linked ETag, gated repositories want a token. It can misbehave on demand and keeps what it was asked."""
import hashlib
import http.server
import threading


class FakeHub:
    def __init__(self, content: bytes, token: str | None = None):
        self.content, self.token = content, token
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.cut_after: int | None = None   # the next download ends after so many bytes
        self.serve_wrong_bytes = False
        self.redirect_to: str | None = None  # instead of the second host
        self.hub_requests: list[dict] = []
        self.cdn_requests: list[dict] = []
        self.cdn = self._serve(self._cdn_get)
        self.hub = self._serve(self._hub_get)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.hub.server_address[1]}"

    def _serve(self, get):
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                get(self)

            def do_HEAD(self):
                get(self)

            def log_message(self, *_):
                pass
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    def _hub_get(self, handler) -> None:
        self.hub_requests.append({"path": handler.path, **{k.lower(): v for k, v in handler.headers.items()}})

        def answer(status: int, **headers) -> None:
            handler.send_response(status)
            for key, value in headers.items():
                handler.send_header(key.replace("_", "-"), value)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
        if self.token and handler.headers.get("Authorization") != f"Bearer {self.token}":
            answer(401, X_Error_Code="GatedRepo", X_Error_Message="Access to this model is restricted.")
        elif handler.path != "/org/repo/resolve/main/dir/model.gguf":
            answer(404, X_Error_Code="EntryNotFound")
        else:
            answer(302, Location=self.redirect_to or f"http://127.0.0.1:{self.cdn.server_address[1]}/blob",
                   X_Linked_ETag=f'"{self.sha256}"', X_Linked_Size=str(len(self.content)), ETag=f'"{self.sha256}"',
                   X_Repo_Commit="a" * 40)

    def _cdn_get(self, handler) -> None:
        self.cdn_requests.append({k.lower(): v for k, v in handler.headers.items()})
        content = bytes([self.content[0] ^ 1]) + self.content[1:] if self.serve_wrong_bytes else self.content
        start = 0
        if (wanted := handler.headers.get("Range", "")).startswith("bytes="):
            start = int(wanted[6:].split("-")[0])
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            handler.send_response(200)
        handler.send_header("ETag", f'"{self.sha256}"')
        handler.send_header("Accept-Ranges", "bytes")
        handler.send_header("Content-Length", str(len(content) - start))
        handler.end_headers()
        if handler.command == "HEAD":
            return
        part = content[start:]
        if self.cut_after is not None:
            part, self.cut_after = part[:self.cut_after], None
            handler.wfile.write(part)
            handler.wfile.flush()
            handler.close_connection = True
            handler.connection.shutdown(2)
            return
        handler.wfile.write(part)

    def close(self) -> None:
        self.hub.shutdown()
        self.cdn.shutdown()
