"""Where executors get layers from: their stores, the driver, each other. The text is always that of one machine."""
import contextlib
import hashlib
import os
import socket
import struct
import threading

import httpx
import pytest

from conftest import ON_MESH, SMOLLM2, complete, completion_args, executors
from test_mesh import QUESTION, answer
from test_mesh_bad_input import (BLOB, BLOB_REQUEST, BLOB_STATE, HELLO, WELCOME,
                                 commands, frame, hello, offer, text)
from test_mesh_bad_input import build  # noqa: F401 a fixture

WEIGHTS_BYTES = 90_000_000 # SmolLM2's blocks and tail are a little more
HAVE, NEED, MISSING = 1, 2, 3


@pytest.fixture
def model(daemon):
    daemon.cli("import", str(SMOLLM2), "--name", "smollm2")
    return daemon


def load(daemon, mesh, *options):
    """Puts the model on the executors and lets it answer."""
    return daemon.cli("run", "smollm2", "--on", ",".join(mesh.addresses), "--temperature", "0", "--max-tokens", "24", *options,
                      QUESTION["messages"][0]["content"]).stdout.strip()


def sent(daemon) -> int:
    """Bytes that the driver sent to its executors."""
    return sum(int(part["bytesOut"]) for part in daemon.deployment("smollm2:latest")["engine"]["parts"])


def moved(daemon) -> int:
    """Bytes between the driver and its executors, both ways."""
    return sent(daemon) + sum(int(part["bytesIn"]) for part in daemon.deployment("smollm2:latest")["engine"]["parts"])


def received(mesh) -> int:
    """Bytes of the layers in the executors' stores."""
    return sum(blob.stat().st_size for store in mesh.stores for blob in (store / "blobs" / "sha256").iterdir())


def test_layers_are_sent_once_and_kept(model, tmp_path):
    expected = answer(model)
    with executors(tmp_path, 2) as two:
        assert expected.startswith(load(model, two))
        assert sent(model) > WEIGHTS_BYTES and received(two) > WEIGHTS_BYTES
        model.cli("stop", "smollm2")
        assert expected.startswith(load(model, two)) # they are in memory still
        assert sent(model) < 2_000_000
        model.cli("stop", "smollm2")
    with executors(tmp_path, 2) as two: # other processes, the same stores
        assert expected.startswith(load(model, two))
        assert sent(model) < 2_000_000
        assert answer(model) == expected


def test_the_driver_needs_no_layers(model, tmp_path):
    """All of them are in the store of one executor; the driver's node has head and embedding only."""
    expected = answer(model)
    with executors(tmp_path, 1) as one:
        load(model, one)
        model.cli("stop", "smollm2")
        blobs = {path.name for path in (one.stores[0] / "blobs" / "sha256").iterdir()}
        embedding = max((model.home / "store" / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
        for name in blobs - {embedding.name}:
            (model.home / "store" / "blobs" / "sha256" / name).unlink()
    (tmp_path / "store-0").rename(tmp_path / "store-1") # so the first one has to get its layers from the second
    with executors(tmp_path, 2) as two:
        assert expected.startswith(load(model, two))
        assert sent(model) < 2_000_000
        assert received(two) > 1.4 * WEIGHTS_BYTES
        assert answer(model) == expected


def test_a_layer_that_nobody_has(model, tmp_path):
    for path in sorted((model.home / "store" / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)[-4:-1]:
        path.unlink()
        gone = path.name
    with executors(tmp_path, 1) as one:
        done = model.cli("run", "smollm2", "--on", one.addresses[0], "hello", check=False)
    assert done.returncode == 1 and "nobody has blob sha256:" in done.stderr and gone, done.stderr


def test_a_damaged_layer_is_named_and_fetched_again(model, tmp_path):
    expected = answer(model)
    with executors(tmp_path, 1) as one:
        load(model, one)
        model.cli("stop", "smollm2")
    blob = max((one.stores[0] / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    with open(blob, "r+b") as file:
        file.seek(blob.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    with executors(tmp_path, 1) as one:
        assert expected.startswith(load(model, one))
        assert f"{blob.name} is damaged" in one.logs[0].read_text()
        assert blob.stat().st_size < sent(model) < blob.stat().st_size + 2_000_000
    assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name


def test_state_stays_on_executors(model, tmp_path):
    """Two long conversations take turns in one slot: the driver neither takes what was computed for one nor brings it back."""
    def ask(about: str):
        prompt = " ".join(f"{about} number {i} is large." for i in range(60))
        answer = httpx.post(f"{model.url}/v1/completions", timeout=120, json={
            "model": "smollm2", "prompt": prompt, "max_tokens": 1, "temperature": 0}).json()
        return answer["usage"]["prompt_tokens"]
    with executors(tmp_path, 2) as two:
        model.start_model("smollm2", on=two.addresses, slots=1, lanes=1)
        ask("cat")
        before = moved(model)
        tokens = sum(ask(about) for about in ("dog", "cat", "dog", "cat"))
        assert tokens > 1200
        # An embedding goes out for each token of a prompt, logits of each answer come in; state would be ten times that.
        assert moved(model) - before < 2 * (tokens * 576 * 4 + 4 * 49152 * 4)


# ------------------------------------------------------------------------------------------------------------- on the wire

class Driver:
    """A connection to an executor, frame by frame."""

    def __init__(self, address: str, build: str):
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=20)
        self.socket.sendall(hello(build))
        assert self.read(WELCOME)

    def read(self, type: int) -> bytes:
        """The body of the next frame of this type."""
        while True:
            head = self._take(36)
            body = self._take(struct.unpack_from("<I", head, 8)[0])
            if head[6] == type:
                return body

    def blob_state(self):
        body = self.read(BLOB_STATE)
        return body[36], body[39:].decode()

    def send(self, data: bytes):
        self.socket.sendall(data)

    def _take(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.socket.recv(size - len(data))
            assert piece, "the executor ended the connection"
            data += piece
        return data


def blob(digest: bytes, data: bytes, offset=0, total=None) -> bytes:
    return frame(BLOB, digest + struct.pack("<QQ", offset, len(data) if total is None else total) + data)


@contextlib.contextmanager
def peer(data: bytes):
    """An executor that answers each request for a blob with these bytes; its address, and how often it was asked."""
    asked, connections = [], []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            connections.append(connection)
            with connection:
                while len(head := connection.recv(36, socket.MSG_WAITALL)) == 36:
                    body = connection.recv(struct.unpack_from("<I", head, 8)[0], socket.MSG_WAITALL)
                    if head[6] == HELLO:
                        connection.sendall(frame(WELCOME, text("a build") + text("a name") + struct.pack("<H", 0)))
                    elif head[6] == BLOB_REQUEST:
                        asked.append(body[:32])
                        connection.sendall(blob(body[:32], data))
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield "{}:{}".format(*listener.getsockname()), asked
    finally:
        listener.close()
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            socket.create_connection(listener.getsockname(), timeout=1).close()
        thread.join(20)


def test_wrong_bytes_are_refused_and_fetched_elsewhere(tmp_path, build): # noqa: F811
    data = os.urandom(100_000)
    digest, part = hashlib.sha256(data).digest(), hashlib.sha256(data[:1000]).digest()
    wrong = data[:500] + bytes([data[500] ^ 1]) + data[501:]
    with executors(tmp_path, 1) as one, peer(wrong) as (liar, asked), peer(data) as (honest, _):
        driver = Driver(one.addresses[0], build)
        driver.send(commands(offer(digest, len(data), True, [(0, 1000, part)])))
        assert driver.blob_state() == (NEED, "")
        driver.send(blob(digest, wrong))
        state, reason = driver.blob_state()
        assert state == MISSING and "bytes 0 to 1000 have the digest" in reason
        driver.send(commands(offer(digest, len(data), True), sequence=2)) # without parts: found at the end
        assert driver.blob_state() == (NEED, "")
        driver.send(blob(digest, wrong))
        state, reason = driver.blob_state()
        assert state == MISSING and "arrived with other bytes" in reason
        driver.send(commands(offer(digest, len(data), False, (), ["127.0.0.1:1", liar, honest]), sequence=3))
        assert driver.blob_state() == (HAVE, "")
        assert asked == [digest]
        log = one.logs[0].read_text()
        assert f"from {liar}: blob sha256:{digest.hex()} arrived with other bytes" in log and "from 127.0.0.1:1" in log


def test_thousands_of_blobs_that_never_come(tmp_path, peers, build): # noqa: F811
    """A driver offers them, sends the beginning of each, and stays; others are served all the same."""
    digests = [hashlib.sha256(str(i).encode()).digest() for i in range(3000)]
    expected = complete(completion_args(peers, SMOLLM2, "Once upon a time", 16))
    with executors(tmp_path, 1) as one:
        driver = Driver(one.addresses[0], build)
        driver.send(commands(*(offer(digest, 1 << 30, True) for digest in digests)))
        for _ in digests:
            assert driver.blob_state() == (NEED, "")
        for digest in digests:
            driver.send(blob(digest, b"only this", total=1 << 30))
        with one.working(range(1)):
            assert complete(completion_args(peers, SMOLLM2, "Once upon a time", 16, *ON_MESH), one.env()) == expected
        assert one.processes[0].poll() is None
