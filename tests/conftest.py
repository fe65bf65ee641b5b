"""Fixtures of the whole-system tests: real daemons, engines and models, on loopback, in temporary homes."""
import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import struct
import subprocess
import sys
import time

import httpx
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = pathlib.Path(os.environ.get("STRATA_BUILD") or ROOT / "build" / "release")
BIN = BUILD / "bin"
sys.path.insert(0, str(ROOT / "scripts"))
from fetch import cache_dir  # noqa: E402

MODELS = cache_dir() / "models"
SMOLLM2 = MODELS / "smollm2-135m-instruct-q4_1.gguf"
SMOLLM2_BY_TYPE = {type: MODELS / f"smollm2-135m-instruct-{type}.gguf" for type in ("q4_0", "q4_1", "q4_k_m")}
MINILM = MODELS / "minilm-f16.gguf"
START_TIMEOUT_S = 60


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_until(condition, timeout_s=30.0, what="the condition"):
    """Polls until condition() is true and returns its value; fails the test when it does not come true."""
    end = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            pytest.fail(f"{what} did not come true within {timeout_s} s")
        time.sleep(0.02)


def wait_for_server(process: subprocess.Popen, health_url: str, log=lambda: "") -> None:
    """Until the server answers; fails the test when the process ends before."""
    def up():
        if process.poll() is not None:
            pytest.fail(f"{process.args[0]} ended with {process.returncode}:\n{log()}")
        try:
            return httpx.get(health_url, timeout=2).status_code == 200
        except httpx.TransportError:
            return False
    wait_until(up, START_TIMEOUT_S, health_url)


def alive(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False


class Daemon:
    """A stratad with a home of its own."""

    def __init__(self, home: pathlib.Path, *options: str, port: int | None = None):
        self.home = home
        self.port = port or free_port()
        self.options = options
        self.process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def env(self) -> dict:
        return {**os.environ, "STRATA_HOME": str(self.home), "NO_COLOR": "1"}

    def start(self) -> "Daemon":
        self.home.mkdir(parents=True, exist_ok=True)
        with open(self.home / "stratad.out", "ab") as log:
            self.process = subprocess.Popen([str(BIN / "stratad"), "--home", str(self.home), "--listen",
                                             f"127.0.0.1:{self.port}", *self.options],
                                            stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for_server(self.process, f"{self.url}/healthz", self.log)
        return self

    def log(self) -> str:
        return (self.home / "stratad.out").read_text(errors="replace")

    def cli(self, *args: str, check=True, timeout=120, **kwargs) -> subprocess.CompletedProcess:
        kwargs.setdefault("stdin", subprocess.DEVNULL) if "input" not in kwargs else None
        done = subprocess.run([str(BIN / "strata"), *args], env=self.env, capture_output=True, text=True,
                              timeout=timeout, **kwargs)
        if check and done.returncode != 0:
            pytest.fail(f"strata {' '.join(args)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done

    def json(self, *args: str):
        return json.loads(self.cli("--json", *args).stdout)

    def deployments(self) -> list[dict]:
        """What `strata ps` knows, through the Connect JSON of the same service."""
        answer = httpx.post(f"{self.url}/strata.v1.Deployments/List", json={"all": True}, timeout=10)
        answer.raise_for_status()
        return answer.json().get("deployments", [])

    def deployment(self, name: str) -> dict | None:
        return next((d for d in self.deployments() if d["name"] == name), None)

    def start_model(self, name: str, **options) -> None:
        """Loads a model with serve options (contextTokens, slots, threads, batchTokens, ...) and waits until it is ready:
        Deployments.Start over the Connect protocol's streaming form."""
        message = json.dumps({"model": name, "options": options, "keep": True}).encode()
        with httpx.stream("POST", f"{self.url}/strata.v1.Deployments/Start", timeout=120,
                          headers={"content-type": "application/connect+json"},
                          content=struct.pack(">BI", 0, len(message)) + message) as r:
            data = r.read()
        while data:
            flags, size = struct.unpack(">BI", data[:5])
            message, data = json.loads(data[5:5 + size]), data[5 + size:]
            if flags & 2 and "error" in message:
                pytest.fail(f"loading {name}: {message['error']}")

    def engine_socket(self) -> pathlib.Path:
        """The socket of the only engine that runs."""
        (found,) = (self.home / "run").glob("engine-*.sock")
        return found

    def stop(self, signal_number=signal.SIGTERM, timeout_s=30) -> int:
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            pytest.fail(f"stratad did not end within {timeout_s} s:\n{self.log()[-2000:]}")

    def end_engines(self) -> None:
        """Ends engines that outlive a killed daemon: only processes whose socket lies in this home."""
        for entry in pathlib.Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
                if str(self.home) in command and "strata-engine" in command:
                    os.kill(int(entry.name), signal.SIGKILL)


@contextlib.contextmanager
def running(home: pathlib.Path, *options: str, models=()):
    daemon = Daemon(home, *options)
    try:
        daemon.start()
        for file, name in models:
            daemon.cli("import", str(file), "--name", name)
        yield daemon
    finally:
        try:
            daemon.stop()
        finally:
            daemon.end_engines()


@pytest.fixture
def daemon(tmp_path):
    """A fresh daemon without models."""
    with running(tmp_path / "home") as d:
        yield d


@pytest.fixture(scope="session")
def node(tmp_path_factory):
    """One daemon for all tests that only ask it things: SmolLM2 and MiniLM are in its store."""
    with running(tmp_path_factory.mktemp("node") / "home", models=((SMOLLM2, "smollm2"), (MINILM, "minilm"))) as d:
        yield d


@pytest.fixture(scope="session")
def llama():
    """The folder of the pinned llama.cpp build."""
    out = subprocess.run([str(ROOT / "scripts" / "build-llama.sh"), "native"], check=True, capture_output=True, text=True)
    return pathlib.Path(out.stdout.strip())


@pytest.fixture(scope="session")
def peers():
    """The folder of the pinned llama.cpp's programs that a mesh is loaded into, or measured beside."""
    out = subprocess.run([str(ROOT / "scripts" / "build-llama.sh"), "peers"], check=True, capture_output=True, text=True)
    return pathlib.Path(out.stdout.strip()) / "bin"


class Executors:
    """Executors of a mesh on this machine, and what a stock llama.cpp program needs to use them."""

    def __init__(self, folder: pathlib.Path, count: int, *options: str, threads=1, cores=None):
        self.stores = [folder / f"store-{i}" for i in range(count)]
        self.logs = [folder / f"executor-{i}.log" for i in range(count)]
        self.processes, self.addresses = [], []
        for i, log in enumerate(self.logs):
            pin = ["taskset", "-c", str(cores[i % len(cores)])] if cores else []
            with open(log, "wb") as out:
                process = subprocess.Popen([*pin, str(BIN / "strata-engine"), "executor", "--listen", "127.0.0.1:0",
                                            "--threads", str(threads), "--store", str(self.stores[i]), *options],
                                           stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=out)
            self.processes.append(process)
        for process in self.processes:
            self.addresses.append(json.loads(process.stdout.readline())["listening"])

    def env(self, count=None, **variables) -> dict:
        """The environment of a program that uses the first `count` executors: cuts=8 is STRATA_MESH_CUTS=8."""
        return {**os.environ, "GGML_BACKEND_PATH": str(BUILD / "lib" / "libggml-strata.so"),
                "STRATA_MESH": ",".join(self.addresses[:count]),
                **{f"STRATA_MESH_{name.upper()}": str(value) for name, value in variables.items()}}

    def graphs(self, i: int) -> list[int]:
        """How many an executor ran for each driver that has left."""
        return [int(n) for n in re.findall(r"left after (\d+) graphs", self.logs[i].read_text(errors="replace"))]

    @contextlib.contextmanager
    def working(self, which: range, sessions=1):
        """Fails unless each of these executors runs graphs for that many lanes, which leave, meanwhile."""
        before = [len(self.graphs(i)) for i in which]
        yield
        for i, seen in zip(which, before):
            graphs = wait_until(lambda: len(self.graphs(i)) >= seen + sessions and self.graphs(i)[seen:], 10,
                                f"the end of the session at executor {i}")
            assert min(sorted(graphs)[-sessions:]) > 0, f"executor {i} ran no graph"

    def stop(self):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(20)
            process.stdout.close()


@contextlib.contextmanager
def executors(folder: pathlib.Path, count: int, *options: str, **kwargs):
    folder.mkdir(parents=True, exist_ok=True)
    started = Executors(folder, count, *options, **kwargs)
    try:
        yield started
    finally:
        started.stop()


def certificates(folder: pathlib.Path, *names: str) -> list[pathlib.Path]:
    """Makes a CA and certificates of it; what --tls takes, for each name."""
    subprocess.run([str(ROOT / "scripts" / "mesh-certs.sh"), str(folder), *names], check=True)
    return [folder / name for name in names]


# What makes a stock program use the mesh, apart from the environment. -dev also makes it load plug-ins at all.
ON_MESH = ("-dev", "STRATA0", "-ngl", "99")


def completion_args(peers: pathlib.Path, model: pathlib.Path, prompt: str, tokens: int, *options: str) -> list[str]:
    return [str(peers / "llama-completion"), "-m", str(model), "-p", prompt, "-n", str(tokens), "--temp", "0", "-no-cnv",
            "--ignore-eos", "-fit", "off", "-t", "1", *options]


def complete(args: list[str], env=None) -> str:
    """What llama-completion writes: the prompt and its greedy continuation."""
    done = subprocess.run(args, stdin=subprocess.DEVNULL, capture_output=True, env=env, timeout=240)
    assert done.returncode == 0, f"{args} ended with {done.returncode}:\n{done.stderr[-4000:].decode(errors='replace')}"
    return done.stdout.decode(errors="replace")


@pytest.fixture(scope="session")
def tools_file(llama, tmp_path_factory):
    """SmolLM2 under a chat template that knows tools: its own does not, and llama.cpp then leaves tools out."""
    file = tmp_path_factory.mktemp("tools") / "tools.gguf"
    template = llama / "source" / "models" / "templates" / "Qwen-Qwen2.5-7B-Instruct.jinja"
    subprocess.run([str(pathlib.Path(sys.executable).parent / "gguf-new-metadata"), "--chat-template", template.read_text(),
                    str(SMOLLM2), str(file)], check=True, capture_output=True)
    return file


@pytest.fixture(scope="session")
def tools_model(node, tools_file):
    node.cli("import", str(tools_file), "--name", "tools")
    return "tools"


@pytest.fixture(scope="session")
def eager_model(node, tools_file, tools_model):
    """The model of tools_model, made to call a tool whenever it may: llama.cpp's grammar lets text come before a call that
    is required, and this small model would write only that. The words that begin a call are made likely; all that follows
    them is held to the tool's schema by the grammar."""
    def ids(text):
        return httpx.post(f"{node.url}/tokenize", json={"model": tools_model, "content": text, "parse_special": True},
                          timeout=60).json()["tokens"]
    # The end is likelier still, so that one call is made; the grammar allows it only after that.
    bias = [f"{token}+20" for token in ids("<tool_call>\n")] + [f"{token}+40" for token in ids("<|im_end|>")]
    node.cli("import", str(tools_file), "--name", "eager")
    node.start_model("eager", llamaArgs=[word for value in bias for word in ("--logit-bias", value)])
    return "eager"


@contextlib.contextmanager
def llama_server(llama_dir: pathlib.Path, model: pathlib.Path, *options: str, env=None):
    """llama.cpp's own server on the same file, as the reference."""
    port = free_port()
    process = subprocess.Popen([str(llama_dir / "bin" / "llama-server"), "-m", str(model), "--host", "127.0.0.1", "--port",
                                str(port), "-t", "2", *options],
                               env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for_server(process, f"{url}/health")
        yield url
    finally:
        process.terminate()
        process.wait(20)


def events(response: httpx.Response):
    """The JSON of each server-sent event of a stream."""
    for line in response.iter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line[len("data: "):])


def chat(prompt: str, **options) -> dict:
    return {"model": "smollm2", "messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": 32,
            **options}
