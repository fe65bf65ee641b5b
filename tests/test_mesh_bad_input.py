"""Whatever comes to an executor's port, the connection ends with an error that says why, and the generation of a driver that
goes on meanwhile is not touched."""
import contextlib
import hashlib
import json
import os
import random
import socket
import struct
import subprocess
import threading
import time

import pytest

from conftest import BIN, ON_MESH, SMOLLM2, complete, completion_args, executors

HELLO, WELCOME, PING, REFUSAL, COMMANDS, PUSH, BLOB, BLOB_STATE, BLOB_REQUEST, LAYER_JOB = 1, 2, 3, 4, 5, 8, 9, 10, 11, 14
DRIVER, PEER, OPERATOR = 1, 2, 3
NEW_BUFFER, SET, FILL, BIND, UNBIND, DEFINE, COMPUTE, PUSH_TO, READ, OFFER = 1, 3, 4, 7, 8, 9, 11, 12, 14, 16
BASE = 1 << 40
F32, NONE = 0, 0xFFFFFFFF


def frame(type: int, body=b"", sequence=0, version=1, size=None) -> bytes:
    return struct.pack("<4sHBBIQQQ", b"STRA", version, type, 0, len(body) if size is None else size, 0, 0, sequence) + body


def text(value: str) -> bytes:
    return struct.pack("<H", len(value)) + value.encode()


def hello(build: str, role=DRIVER, token=None, device=0) -> bytes:
    return frame(HELLO, text(build) + bytes([role]) + (token or os.urandom(16)) + struct.pack("<H", device) + text("a test"))


def commands(*bodies: bytes, sequence=1) -> bytes:
    return frame(COMMANDS, b"".join(bodies), sequence)


def new_buffer(size: int, address=BASE, id=1) -> bytes:
    return struct.pack("<BIQQ", NEW_BUFFER, id, address, size)


def tensor(type=F32, op=0, ne=(8, 1, 1, 1), nb=None, address=BASE, sources=(), params=()) -> bytes:
    nb = nb or (4, 4 * ne[0], 4 * ne[0] * ne[1], 4 * ne[0] * ne[1] * ne[2])
    return struct.pack("<HHI4I4QQBB", type, op, 0, *ne, *(n % 2**64 for n in nb), address, len(sources), len(params)) + \
        struct.pack(f"<{len(sources)}I{len(params)}i", *sources, *params)


def graph(*tensors: bytes, count=None) -> bytes:
    """Defines and runs it, in a buffer of a mebibyte."""
    encoded = struct.pack("<I", len(tensors) if count is None else count) + b"".join(tensors)
    name = hashlib.sha256(encoded).digest()[:16]
    define = struct.pack("<B", DEFINE) + name + struct.pack("<I", len(encoded)) + encoded
    return commands(new_buffer(1 << 20), define, struct.pack("<B", COMPUTE) + name)


def offer(digest=bytes(32), size=1 << 40, from_driver=False, parts=(), sources=()) -> bytes:
    return struct.pack("<BI32sQBI", OFFER, 1, digest, size, int(from_driver), len(parts)) + \
        b"".join(struct.pack("<QQ32s", *part) for part in parts) + struct.pack("<H", len(sources)) + \
        b"".join(text(source) for source in sources)


def bind(type=F32, ne=(8, 1, 1, 1), address=BASE, offset=0) -> bytes:
    return struct.pack("<BQ32sQI4q", BIND, address, bytes(32), offset, type, *ne)


def layer_job(number=1, kind=1, digest=bytes(32), type=2) -> bytes:
    return frame(LAYER_JOB, struct.pack("<IB32sI", number, kind, digest, type))


# Sent after a valid hello: bytes, and a piece of the error's text.
AFTER_HELLO = {
    "random bytes": (random.Random(1).randbytes(300), "not a frame"),
    "random commands": (commands(random.Random(2).randbytes(300)), "malformed command"),
    "a second hello": (frame(HELLO, b""), "frame of type 1"),
    "4 GB announced": (frame(COMMANDS, size=0xFFFFFFFF), "4294967295 bytes"),
    "a frame out of order": (commands(new_buffer(4096), sequence=7), "frame 7 came instead of 1"),
    "a command without its end": (commands(new_buffer(4096)[:-3]), "malformed command 1"),
    "an unknown command": (commands(bytes([200])), "malformed command 1"),
    "a range that wraps": (commands(new_buffer(64, address=2**64 - 16)), "malformed command 1"),
    "an empty range": (commands(new_buffer(0)), "malformed command 1"),
    "overlapping buffers": (commands(new_buffer(8192), new_buffer(8192, BASE + 4096, 2)), "overlaps"),
    "a buffer of 2^60 bytes": (commands(new_buffer(1 << 60)), "too large"),
    "a buffer's number twice": (commands(new_buffer(64), new_buffer(64, BASE + 4096)), "exists already"),
    "bytes outside of all buffers": (commands(struct.pack("<BQQ", SET, 4096, 3) + b"abc"), "in no buffer"),
    "bytes across a buffer's end": (commands(new_buffer(4096), struct.pack("<BQQ", SET, BASE + 4094, 3) + b"abc"), "in no buffer"),
    "a terabyte filled": (commands(new_buffer(1 << 40), struct.pack("<BQQB", FILL, BASE, 1 << 40, 1)), "limit of"),
    "a terabyte read": (commands(new_buffer(1 << 40), struct.pack("<BQIQQ", READ, 1, 1, BASE, 1 << 40)), "fit into a frame"),
    "a graph that nobody defined": (commands(struct.pack("<B", COMPUTE) + bytes(16)), "not defined"),
    "a graph under another's hash": (commands(struct.pack("<B", DEFINE) + bytes(16) + struct.pack("<II", 4, 0)), "wrong hash"),
    "a million tensors": (graph(count=1_000_000), "a graph of 1000000 tensors"),
    "a cycle": (graph(tensor(), tensor(op=2, sources=(0, 2)), tensor(op=2, sources=(0, 1))), "does not come before it"),
    "a source that is itself": (graph(tensor(op=2, sources=(0, 0))), "does not come before it"),
    "an unknown op": (graph(tensor(), tensor(op=9999, sources=(0, 0))), "unknown op 9999"),
    "an unknown type": (graph(tensor(type=4444)), "unknown type 4444"),
    "a removed type": (graph(tensor(type=4)), "unknown type 4"),
    "too many elements": (graph(tensor(ne=(2**32 - 1, 2**32 - 1, 1, 1))), "out of range"),
    "strides that wrap": (graph(tensor(nb=(4, 2**63, 2**63, 2**63), ne=(8, 3, 3, 3))), "too large"),
    "a tensor outside of all buffers": (graph(tensor(address=64)), "in no buffer"),
    "a tensor beyond its buffer": (graph(tensor(ne=(1 << 20, 1, 1, 1))), "in no buffer"),
    "half a block": (graph(tensor(type=2, ne=(31, 1, 1, 1))), "whole blocks"),
    "a view as a node": (graph(tensor(), tensor(op=39, sources=(0,))), "not on the list"),
    "shapes that an op asserts": (graph(tensor(), tensor(op=2, ne=(5, 1, 1, 1), sources=(0, 0))), "ADD"),
    "bytes behind a graph": (graph(tensor(), b"x", count=1), "length is wrong"),
    "a weight of unknown type": (commands(new_buffer(4096), offer(), bind(type=77)), "unknown type 77"),
    "a weight with dimensions that wrap": (commands(new_buffer(4096), offer(), bind(ne=(2**31 - 1,) * 4)), "too large"),
    "a weight with negative dimensions": (commands(new_buffer(4096), offer(), bind(ne=(-8, 1, 1, 1))), "out of range"),
    "a weight outside of all buffers": (commands(offer(), bind()), "in no buffer"),
    "a weight of a blob that nobody offered": (commands(new_buffer(4096), bind()), "not offered"),
    "a weight beyond its blob": (commands(new_buffer(4096), offer(size=64), bind(offset=64)), "beyond its blob"),
    "a weight at an offset that wraps": (commands(new_buffer(4096), offer(size=64), bind(offset=2**64 - 32)), "beyond its blob"),
    "a weight between two words": (commands(new_buffer(4096), offer(), bind(offset=8)), "not aligned"),
    "a blob of 2^60 bytes": (commands(offer(size=1 << 60)), "too large"),
    "a blob of no bytes": (commands(offer(size=0)), "malformed command 1"),
    "a blob with a part beyond its end": (commands(offer(size=64, parts=[(32, 33, bytes(32))])), "malformed command 1"),
    "a blob with parts that overlap": (commands(offer(size=64, parts=[(0, 9, bytes(32)), (8, 8, bytes(32))])), "malformed command 1"),
    "a blob with a million parts": (commands(struct.pack("<BI32sQBI", OFFER, 1, bytes(32), 1 << 30, 0, 1_000_000)), "malformed command 1"),
    "no weight to unbind": (commands(struct.pack("<BQB", UNBIND, BASE, 0)), "no weight is bound"),
    "a piece beyond a blob's end": (frame(BLOB, bytes(32) + struct.pack("<QQ", 2, 4) + b"abcd"), "malformed piece"),
    "a push to a peer without a name": (commands(new_buffer(4096), struct.pack("<BHQIQQ", PUSH_TO, 3, 1, 1, BASE, 8)), "peer 3"),
}


class Attacker(threading.Thread):
    """Connects, sends what it is told, and reads until the executor ends the connection."""

    def __init__(self, address: str, name: str, send, expected: str):
        super().__init__(name=name)
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=40)
        self.send, self.expected, self.frames, self.failure = send, expected, [], None

    def run(self):
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError): # the answer may come before all is sent
                self.send(self.socket)
            while len(head := self._read(36)) == 36:
                self.frames.append((head[6], self._read(struct.unpack_from("<I", head, 8)[0])))
        except OSError as error:
            self.failure = f"{error!r} after {self.frames}"
        finally:
            self.socket.close()

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size and (piece := self.socket.recv(size - len(data))):
            data += piece
        return data

    def verdict(self) -> str | None:
        if self.failure:
            return f"{self.name}: {self.failure}"
        if not self.frames or self.frames[-1][0] != REFUSAL:
            return f"{self.name}: ended without a refusal: {self.frames}"
        said = self.frames[-1][1].decode(errors="replace")
        return None if self.expected in said else f"{self.name}: said '{said}', not '{self.expected}'"


@pytest.fixture(scope="module")
def build():
    out = subprocess.run([str(BIN / "strata-engine"), "version", "--json"], check=True, capture_output=True, text=True).stdout
    return json.loads(out)["engine_build"]


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    with executors(tmp_path_factory.mktemp("mesh"), 2, "--memory-limit", "1G") as started:
        yield started


@contextlib.contextmanager
def generations_beside(peers, mesh):
    """Greedy text over the same executors, again and again; each must be the local text."""
    args = completion_args(peers, SMOLLM2, "Once upon a time", 64)
    expected, texts, over = complete(args), [], threading.Event()

    def generate():
        while not over.is_set() or not texts:
            try:
                texts.append(complete([*args, *ON_MESH], mesh.env()))
            except AssertionError as error:
                texts.append(str(error))
    thread = threading.Thread(target=generate)
    thread.start()
    try:
        yield texts
    finally:
        over.set()
        thread.join()
    assert set(texts) == {expected}
    assert all(process.poll() is None for process in mesh.processes)


def slowly(data: bytes, pause_s: float):
    def send(to):
        for byte in data:
            to.sendall(bytes([byte]))
            time.sleep(pause_s)
    return send


def test_garbage(peers, mesh, build):
    good, token = hello(build), os.urandom(16)
    cases = [(name, hello(build) + data, expected) for name, (data, expected) in AFTER_HELLO.items()]
    cases += [
        ("random bytes at first", random.Random(3).randbytes(5000), "not a frame"),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: curl/8\r\n\r\n", "not a frame"),
        ("TLS", b"\x16\x03\x01\x02\x00\x01" + bytes(506), "TLS is not spoken here"),
        ("another version", frame(HELLO, version=9), "version 9 of the wire"),
        ("an unknown frame", frame(99), "unknown frame type 99"),
        ("commands before the hello", frame(COMMANDS), "frame of type 5"),
        ("a large hello", frame(HELLO, bytes(5000)), "at most 4096"),
        ("half a hello", frame(HELLO, good[36:-4]), "malformed hello"),
        ("a long hello", frame(HELLO, good[36:] + b"x"), "malformed hello"),
        ("an unknown role", hello(build, role=9), "malformed hello"),
        ("another build", hello("strata-0.0.1-other"), "strata-0.0.1-other"),
        ("a device that is not there", hello(build, device=99), "no device 99"),
        ("commands of a peer", hello(build, role=PEER) + commands(new_buffer(4096)), "frame of type 5"),
        ("half a push", hello(build, role=PEER) + frame(PUSH, bytes(10)), "malformed push"),
        ("commands of an operator", hello(build, role=OPERATOR) + commands(new_buffer(4096)), "frame of type 5"),
        ("a layer job of a driver", hello(build) + layer_job(), "frame of type 14"),
        ("a layer job of a peer", hello(build, role=PEER) + layer_job(), "frame of type 14"),
        ("a large frame of an operator", hello(build, role=OPERATOR) + frame(LAYER_JOB, bytes(5000)), "at most 4096"),
        ("half a layer job", hello(build, role=OPERATOR) + frame(LAYER_JOB, layer_job()[36:-4]), "malformed layer job"),
        ("a long layer job", hello(build, role=OPERATOR) + frame(LAYER_JOB, layer_job()[36:] + b"x"), "malformed layer job"),
        ("an unknown kind of layer job", hello(build, role=OPERATOR) + layer_job(kind=77), "malformed layer job"),
    ]
    failures = []
    with generations_beside(peers, mesh) as texts:
        for name, data, expected in cases:
            attacker = Attacker(mesh.addresses[0], name, lambda to, data=data: to.sendall(data), expected)
            attacker.run()
            failures.append(attacker.verdict())
        assert [f for f in failures if f] == []
        first = socket.create_connection(("127.0.0.1", int(mesh.addresses[0].rsplit(":", 1)[1])))
        with first:
            first.sendall(hello(build, token=token))
            assert first.recv(8)[6] == WELCOME
            second = Attacker(mesh.addresses[0], "a lane twice", lambda to: to.sendall(hello(build, token=token)), "here already")
            second.run()
            assert second.verdict() is None
        before = len(texts)
        while len(texts) < before + 2:
            time.sleep(0.1)


def test_the_slow(peers, mesh, build):
    late = [
        ("silence", lambda to: None, "sent no frame in time"),
        ("a byte a second", slowly(hello(build), 1), "in time"),
        ("half a frame, then silence", lambda to: to.sendall(hello(build) + commands(new_buffer(4096))[:-9]), "sent no whole frame in time"),
        ("half a head, then silence", lambda to: to.sendall(hello(build) + frame(PING)[:20]), "sent no frame in time"),
        ("64 MiB announced, 100 sent", lambda to: to.sendall(hello(build) + frame(COMMANDS, bytes(100), size=64 << 20)), "sent no whole frame"),
    ]
    with generations_beside(peers, mesh):
        attackers = [Attacker(mesh.addresses[0], *case) for case in late]
        for attacker in attackers:
            attacker.start()
        for attacker in attackers:
            attacker.join()
        # Slow alone is no crime.
        patient = Attacker(mesh.addresses[0], "a byte at a time", slowly(hello(build) + frame(COMMANDS, b"x", 1), 0.01), "malformed command")
        patient.run()
    assert [verdict for a in [*attackers, patient] if (verdict := a.verdict())] == []
    assert patient.frames[0][0] == WELCOME


def test_many_connections(peers, mesh):
    """More than an executor accepts, all silent; they are refused or end by themselves, and drivers get through then."""
    port = int(mesh.addresses[0].rsplit(":", 1)[1])
    opened = [socket.create_connection(("127.0.0.1", port)) for _ in range(400)]
    for connection in opened:
        connection.close()
    with generations_beside(peers, mesh):
        pass
