"""Layers made from layers on a running executor: bit for bit what llama.cpp's quantizer makes, beside drivers whose text stays the
same; whatever is asked for, the executor stays up."""
import contextlib
import hashlib
import json
import re
import signal
import socket
import struct
import subprocess

import gguf
import pytest

from conftest import BIN, SMOLLM2, SMOLLM2_BY_TYPE, executors, wait_until
from test_mesh_bad_input import OPERATOR, Attacker, generations_beside, hello, layer_job
from test_mesh_bad_input import build  # noqa: F401 a fixture

JOB_STATE, RUNS, DONE, FAILED = 15, 1, 2, 3
EMBEDDING, BLOCK, TAIL = 1, 6, 32 # places of SmolLM2, which has 30 blocks


def llama_quantize(llama, source, target, type, *options):
    subprocess.run([str(llama / "bin" / "llama-quantize"), *options, str(source), str(target), type, "2"], check=True,
                   capture_output=True, timeout=120)
    return target


@pytest.fixture(scope="module")
def f16(llama, tmp_path_factory):
    return llama_quantize(llama, SMOLLM2, tmp_path_factory.mktemp("f16") / "f16.gguf", "F16", "--allow-requantize")


class Node:
    """An executor with models in its store."""

    def __init__(self, mesh):
        self.mesh, self.store = mesh, mesh.stores[0]
        self.blobs = self.store / "blobs" / "sha256"

    def import_model(self, file, name) -> list[str]:
        """The digests of its layers, from the head to the tail."""
        done = subprocess.run([str(BIN / "strata-engine"), "import", "--store", str(self.store), "--name", name, str(file)],
                              check=True, capture_output=True, text=True, timeout=120)
        manifest = json.loads(self.blob(json.loads(done.stdout.splitlines()[-1])["digest"]).read_text())
        return [layer["digest"] for layer in manifest["layers"] if layer["mediaType"].endswith("weight.v1.raw")]

    def blob(self, digest):
        return self.blobs / digest.removeprefix("sha256:")

    def command(self, layer, type, *options):
        return [str(BIN / "strata-engine"), "quantize-layer", "--executor", self.mesh.addresses[0], "--layer", layer, "--type", type,
                *options]

    def quantize(self, layer, type) -> str:
        """The digest of the new layer."""
        done = subprocess.run(self.command(layer, type, "--json"), capture_output=True, text=True, timeout=120)
        *progress, last = [json.loads(line) for line in done.stdout.splitlines()]
        assert done.returncode == 0 and last["finished"], done.stdout + done.stderr
        assert [line["done"] for line in progress] == sorted(line["done"] for line in progress)
        assert {line["total"] for line in progress} == {last["size"]} == {self.blob(last["digest"]).stat().st_size}
        return last["digest"]

    def fails(self, layer, type) -> str:
        done = subprocess.run(self.command(layer, type), capture_output=True, text=True, timeout=60)
        assert done.returncode == 1 and not done.stdout, done
        return done.stderr

    def unfinished(self) -> list:
        return list((self.store / "tmp").iterdir())


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    with executors(tmp_path_factory.mktemp("jobs"), 1) as mesh:
        yield Node(mesh)


@pytest.fixture(scope="module")
def layers(node, f16):
    return node.import_model(f16, "f16")


def tensors(file) -> dict:
    return {t.name: (t.tensor_type.name, [int(n) for n in t.shape], t.data.tobytes()) for t in gguf.GGUFReader(file).tensors}


@pytest.mark.parametrize("type, llama_type", [("q4_0", "Q4_0"), ("q8_0", "Q8_0"), ("Q4_K", "Q4_K_S")])
def test_equal_to_llama_quantize(node, layers, llama, f16, tmp_path, type, llama_type):
    expected = tensors(llama_quantize(llama, f16, tmp_path / "pure.gguf", llama_type, "--pure"))
    changed = 0
    for place in (EMBEDDING, BLOCK, TAIL):
        made = node.quantize(layers[place], type)
        before, after = tensors(node.blob(layers[place])), tensors(node.blob(made))
        assert list(after) == list(before)
        assert after == {name: expected[name] for name in after}
        changed += sum(after[name][0] != before[name][0] for name in after)
        assert hashlib.sha256(node.blob(made).read_bytes()).hexdigest() == made.removeprefix("sha256:")
    assert changed == 8 # seven matrices of the block, and the embedding


def test_equal_to_the_test_model(node):
    """From a quantized layer, beside llama-quantize without --pure: all of its tensors of the same type."""
    expected, compared = tensors(SMOLLM2_BY_TYPE["q4_0"]), 0
    for layer in node.import_model(SMOLLM2, "q4_1")[1:8]:
        for name, tensor in tensors(node.blob(node.quantize(layer, "q4_0"))).items():
            if tensor[0] == expected[name][0]:
                assert tensor == expected[name], name
                compared += 1
    assert compared > 50


def test_an_equal_result_is_written_once(node, layers):
    made = node.quantize(layers[BLOCK], "q5_0")
    blobs, file = len(list(node.blobs.iterdir())), node.blob(made).stat().st_ino
    assert node.quantize(layers[BLOCK], "q5_0") == made
    assert (len(list(node.blobs.iterdir())), node.blob(made).stat().st_ino) == (blobs, file)
    assert node.quantize(made, "q5_0") == made # nothing to do
    assert node.unfinished() == []


def test_drivers_go_on(peers, node, layers):
    """Their text is the same while jobs run, and the jobs' layers are those that are made without drivers."""
    expected = [node.quantize(layer, "q4_k") for layer in layers[EMBEDDING:BLOCK]]
    with generations_beside(peers, node.mesh) as texts:
        rounds = 0
        while len(texts) < 3 or rounds < 2:
            assert [node.quantize(layer, "q4_k") for layer in layers[EMBEDDING:BLOCK]] == expected
            rounds += 1


# ------------------------------------------------------------------------------------------------------------- what is wrong

def test_errors_are_named(node, layers):
    unknown = "sha256:" + "0" * 64
    assert f"{unknown} is not in the store" in node.fails(unknown, "q4_0")
    assert "IQ2_XS needs an importance matrix" in node.fails(layers[BLOCK], "iq2_xs")
    assert "weights can't be made Q8_K" in node.fails(layers[BLOCK], "q8_k")
    assert "is no layer of a model: it is a model's head" in node.fails(layers[0], "q4_0")
    document = min((blob for blob in node.blobs.iterdir()), key=lambda blob: blob.stat().st_size)
    assert "is no layer of a model" in node.fails(f"sha256:{document.name}", "q4_0")
    failed = subprocess.run(node.command(unknown, "q4_0", "--json"), capture_output=True, text=True, timeout=60)
    assert failed.returncode == 1 and json.loads(failed.stdout)["error"]["code"] == "NOT_FOUND"
    assert node.unfinished() == []
    node.quantize(layers[BLOCK], "q4_1")


def test_a_damaged_layer_is_named(node, layers):
    path = node.blob(layers[BLOCK + 1])
    whole = path.read_bytes()
    path.write_bytes(whole[:-100000] + bytes([whole[-100000] ^ 1]) + whole[-99999:])
    assert re.search(f"{path.name}.* damaged", node.fails(layers[BLOCK + 1], "q4_0"))
    path.write_bytes(whole)
    node.quantize(layers[BLOCK + 1], "q4_0")


def test_wrong_use(node, layers):
    def wrong(*command):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2 and not done.stdout, done
        return done.stderr
    assert "no type 'q4_k_m'" in wrong(*node.command(layers[BLOCK], "q4_k_m"))
    assert '"../x" is not a SHA-256 digest' in wrong(*node.command("sha256:../x", "q4_0"))
    assert "--layer is required" in wrong(str(BIN / "strata-engine"), "quantize-layer", "--executor", "x:1", "--type", "q4_0")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0)) # and does not listen
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        command = node.command(layers[BLOCK], "q4_0")
        command[command.index("--executor") + 1] = address
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and f"cannot connect to {address}" in done.stderr and "executor" in done.stderr


@pytest.mark.parametrize("number, code", [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130), (signal.SIGTERM, 130)])
def test_a_client_that_ends_cancels(node, layers, number, code):
    """In the middle of the embedding, in a type that takes long."""
    before = set(node.blobs.iterdir())
    with subprocess.Popen(node.command(layers[EMBEDDING], "iq3_s", "--json"), stdout=subprocess.PIPE, text=True) as client:
        while not json.loads(client.stdout.readline())["done"]:
            pass
        assert len(node.unfinished()) == 1
        client.send_signal(number)
        assert client.wait(20) == code
    wait_until(lambda: node.unfinished() == [], what="the end of the unfinished layer")
    assert set(node.blobs.iterdir()) == before
    node.quantize(layers[BLOCK], "q4_0")


# ------------------------------------------------------------------------------------------------------------- on the wire

class Operator(Attacker):
    def __init__(self, node, build, name, data=b"", expected=""):  # noqa: F811
        super().__init__(node.mesh.addresses[0], name, lambda to: to.sendall(hello(build, role=OPERATOR) + data), expected)

    def states(self) -> list[tuple]:
        """(number, phase, done, total, digest, code, reason) of each, from what came."""
        return [(*struct.unpack_from("<IBQQ32sB", body), body[56:].decode()) for type, body in self.frames if type == JOB_STATE]


def test_jobs_are_limited(node, layers, build):  # noqa: F811
    """The first sixteen run; one more is refused by name; a number that runs already ends the connection, and all of its jobs."""
    digest = bytes.fromhex(layers[EMBEDDING].removeprefix("sha256:"))
    jobs = b"".join(layer_job(number, digest=digest, type=gguf.GGMLQuantizationType.IQ3_S) for number in [*range(17), 3])
    many = Operator(node, build, "many", jobs, "layer job 3 runs already")
    many.run()
    assert many.verdict() is None
    (refused,) = [state for state in many.states() if state[1] == FAILED]
    assert refused[0] == 16 and refused[5] == 8 and "64 layer jobs at once, 16 of one operator" in refused[6]
    wait_until(lambda: node.unfinished() == [], what="the end of the unfinished layers")
    node.quantize(layers[BLOCK], "q4_0")


def test_types_of_other_builds(node, layers, build):  # noqa: F811
    """Numbers that no type has, whatever a client checks."""
    digest = bytes.fromhex(layers[BLOCK].removeprefix("sha256:"))
    client = Operator(node, build, "types", b"".join(layer_job(n, digest=digest, type=type) for n, type in
                                                     enumerate([4, 31, 43, 2**31, 2**32 - 1, 9])))
    with contextlib.closing(client.socket):
        client.send(client.socket)
        while len(client.states()) < 6:
            head = client._read(36)
            client.frames.append((head[6], client._read(struct.unpack_from("<I", head, 8)[0])))
    assert all(phase == FAILED and code == 3 for _, phase, _, _, _, code, _ in client.states()), client.states()
    node.quantize(layers[BLOCK], "q4_0")
