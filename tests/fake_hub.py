"""A local server that behaves like the hub as far as a download sees it: one port is the hub, which knows names, tokens and hashes
and redirects large files to a second port, the CDN. Another port is another host to whoever decides where a token may go."""
import dataclasses
import hashlib
import http.server
import threading
import time
import urllib.parse


@dataclasses.dataclass
class File:
    data: bytes
    large: bool = True        # on the CDN, with a SHA-256; else served by the hub itself, with git's hash
    token: str | None = None  # who may read it
    licence: bool = False     # nobody may, before accepting a licence

    @property
    def hash(self) -> str:
        if self.large:
            return hashlib.sha256(self.data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()


@dataclasses.dataclass
class Request:
    server: str  # "hub" or "cdn"
    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    sent: int = 0            # bytes of the body


class FakeHub:
    """Faults are set as attributes; lists are used up one by one."""

    def __init__(self):
        self.files: dict[str, File] = {}        # "org/repo/file"
        self.renamed: dict[str, str] = {}       # old "org/repo" to new
        self.requests: list[Request] = []
        self.cuts: list[int] = []               # the CDN closes the connection after so many bytes
        self.statuses: list[tuple[str, int, dict]] = []  # (server, status, headers): the server's next answer to a GET
        self.wrong_bytes = False                # the CDN serves others than the hub states
        self.more_bytes = False                 # the CDN serves more than the hub states
        self.stated_size: int | None = None
        self.stated_hash: str | None = None
        self.location: str | None = None        # where the hub redirects to instead
        self.cdn_etag: str | None = None
        self.ignore_range = False
        self.shift_range = False                # answers a range with another one
        self.header_flood = False
        self.bytes_per_second: int | None = None
        self.servers = {name: self._serve(name) for name in ("hub", "cdn")}

    def url(self, server: str = "hub", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.servers[server].server_address[1]}"

    def of(self, server: str, method: str = "GET") -> list[Request]:
        return [r for r in self.requests if r.server == server and r.method == method]

    def close(self) -> None:
        for server in self.servers.values():
            server.shutdown()
            server.server_close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _serve(self, name: str):
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                self.request_seen = Request(name, self.command, self.path, {k.lower(): v for k, v in self.headers.items()})
                hub.requests.append(self.request_seen)
                (hub._hub if name == "hub" else hub._cdn)(self)

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return server

    @staticmethod
    def _answer(handler, status: int, headers: dict | None = None, body: bytes = b"") -> None:
        handler.send_response(status)
        for key, value in (headers or {}).items():
            handler.send_header(key, value)
        if "Content-Length" not in (headers or {}):
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(body)

    def _injected(self, handler, server: str) -> bool:
        if handler.command == "HEAD" or not self.statuses or self.statuses[0][0] != server:
            return False
        _, status, headers = self.statuses.pop(0)
        self._answer(handler, status, headers, b"no")
        return True

    def _hub(self, handler) -> None:
        if self._injected(handler, "hub"):
            return
        path = urllib.parse.unquote(urllib.parse.urlsplit(handler.path).path).lstrip("/")
        org, repo, resolve, rest = (path.split("/", 3) + [""] * 4)[:4]
        revision, _, name = rest.partition("/")
        if (new := self.renamed.get(f"{org}/{repo}")) is not None:
            self._answer(handler, 307, {"Location": f"/{new}/resolve/{urllib.parse.quote(rest)}"})
            return
        known = [key for key in self.files if key.startswith(f"{org}/{repo}/")]
        file = self.files.get(f"{org}/{repo}/{name}")
        token = handler.headers.get("Authorization", "").removeprefix("Bearer ")
        if resolve != "resolve" or not known:
            self._answer(handler, 401, {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", "v1"):
            self._answer(handler, 404, {"X-Error-Code": "RevisionNotFound"})
        elif file is None:
            self._answer(handler, 404, {"X-Error-Code": "EntryNotFound"})
        elif file.token is not None and token != file.token:
            self._answer(handler, 401, {"X-Error-Code": "GatedRepo"})
        elif file.licence:
            self._answer(handler, 403, {"X-Error-Code": "GatedRepo"})
        elif self.header_flood:
            self._answer(handler, 200, {f"X-Flood-{i}": "x" * 1000 for i in range(90)})
        elif file.large:
            location = self.location or self.url("cdn") + "/" + urllib.parse.quote(f"{org}/{repo}/{name}") + "?Signature=a~b"
            self._answer(handler, 302, {
                "Location": location,
                "X-Linked-ETag": f'"{self.stated_hash or file.hash}"',
                "X-Linked-Size": str(self.stated_size or len(file.data)),
                "X-Repo-Commit": "0" * 40}, b"redirecting")
        else:
            self._send(handler, file.data, f'"{self.stated_hash or file.hash}"')

    def _cdn(self, handler) -> None:
        if self._injected(handler, "cdn"):
            return
        file = self.files[urllib.parse.unquote(urllib.parse.urlsplit(handler.path).path).lstrip("/")]
        data = file.data
        if self.wrong_bytes:
            data = data[:-1] + bytes([data[-1] ^ 1])
        if self.more_bytes:
            data += b"more"
        # A CDN's own ETag is not the hub's hash.
        self._send(handler, data, self.cdn_etag or '"cdn-' + hashlib.md5(data).hexdigest() + '"')

    def _send(self, handler, data: bytes, etag: str) -> None:
        asked = handler.headers.get("Range")
        start = 0
        if asked and not self.ignore_range and handler.headers.get("If-Range", etag) == etag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(data):
                self._answer(handler, 416, {"Content-Range": f"bytes */{len(data)}"})
                return
            shown = start + 1 if self.shift_range else start
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {shown}-{len(data) - 1}/{len(data)}")
        else:
            handler.send_response(200)
        handler.send_header("ETag", etag)
        handler.send_header("Content-Length", str(len(data) - start))
        handler.send_header("Content-Disposition", 'attachment; filename="../../../../etc/passwd"')
        handler.end_headers()
        if handler.command == "HEAD":
            return
        end = len(data)
        if self.cuts:
            end = min(end, start + self.cuts.pop(0))
        while start < end:
            piece = data[start:min(end, start + (65536 if self.bytes_per_second is None else self.bytes_per_second // 20))]
            try:
                handler.wfile.write(piece)
            except OSError:
                return
            handler.request_seen.sent += len(piece)
            start += len(piece)
            if self.bytes_per_second is not None:
                time.sleep(0.05)
        if end < len(data):
            handler.close_connection = True
            handler.connection.shutdown(2)
