"""A cluster: machines join with tokens, trust each other by certificates, and run a model together."""
import contextlib
import itertools
import json
import os
import pathlib
import re
import signal
import socket
import subprocess

import httpx
import pytest

from conftest import BIN, SMOLLM2, Daemon, alive, wait_until

_hosts = itertools.count(1)


def new_host() -> str:
    """An address of this machine that no other test uses."""
    n = next(_hosts)
    return f"127.{1 + os.getpid() % 250}.{n // 250}.{1 + n % 250}"


class Node(Daemon):
    """A daemon that is, or is to be, a node of a cluster."""

    def __init__(self, home: pathlib.Path, *options: str):
        super().__init__(home, *options)
        self.host = new_host()

    def nodes(self) -> dict[str, dict]:
        return {n["name"]: n for n in self.json("nodes")["nodes"]}

    def states(self) -> dict[str, str]:
        return {name: n["state"].removeprefix("STATE_") for name, n in self.nodes().items()}

    def token(self, *options: str) -> dict:
        return self.json("token", "create", *options)

    def join(self, first: "Node", name: str, token=None, check=True) -> subprocess.CompletedProcess:
        made = token or first.token()["token"]
        return self.cli("join", first.host, "--token", made, "--name", name, "--cluster", self.host, check=check)

    def refused(self, *words: str) -> str:
        done = self.cli(*words, check=False)
        assert done.returncode == 1, done.stdout + done.stderr
        assert not self.json("nodes")["nodes"][0]["cluster"]
        return done.stderr


@contextlib.contextmanager
def started(folder: pathlib.Path, count: int):
    """Nodes of which the first begins a cluster; the others are in none yet."""
    nodes = [Node(folder / f"node-{i + 1}") for i in range(count)]
    for node in nodes:
        node.options = ("--executor-threads", "1")
    nodes[0].options += ("--cluster", nodes[0].host)
    try:
        for node in nodes:
            node.start()
        yield nodes
    finally:
        for node in reversed(nodes):
            try:
                node.stop()
            finally:
                node.end_engines()


@pytest.fixture
def pair(tmp_path):
    with started(tmp_path, 2) as nodes:
        yield nodes


@pytest.fixture
def trio(tmp_path):
    """A cluster of three that is complete."""
    with started(tmp_path, 3) as nodes:
        nodes[0].name = next(iter(nodes[0].nodes()))
        for i, node in enumerate(nodes[1:], start=2):
            node.name = f"node-{i}"
            node.join(nodes[0], node.name)
        for node in nodes:
            wait_until(lambda: ready_with_executors(node) == 3, what="three nodes that are ready")
        yield nodes


def ready_with_executors(node: Node) -> int:
    return sum(n["state"] == "STATE_READY" and bool(n["executorAddress"]) for n in node.nodes().values())


def ask(node: Node, model="smollm2", tokens=24) -> str:
    answer = httpx.post(f"{node.url}/v1/completions", timeout=120, json={
        "model": model, "prompt": "The capital of France is", "max_tokens": tokens, "temperature": 0})
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["text"]


def test_a_model_runs_over_all_nodes(trio):
    first = trio[0]
    first.cli("import", str(SMOLLM2), "--name", "smollm2")
    alone = ask(first)
    first.cli("stop", "smollm2")
    first.cli("deploy", "smollm2")
    parts = first.deployment("smollm2:latest")["engine"]["parts"]
    assert {p["executor"] for p in parts} == {n["executorAddress"] for n in first.nodes().values()}
    # Its own executor has the tail, so that logits do not travel.
    tail = max(parts, key=lambda p: p["lastLayer"])
    assert tail["executor"] == first.nodes()[first.name]["executorAddress"]
    assert ask(first) == alone
    ran = first.deployment("smollm2:latest")["engine"]["parts"]
    assert all(int(p["graphs"]) > 0 for p in ran), ran
    # TLS with certificates only: a stranger's engine is let in nowhere.
    stranger = subprocess.run(
        [BIN / "strata-engine", "quantize-layer", "--executor", parts[0]["executor"], "--layer", "sha256:" + 64 * "0", "--type",
         "q4_0"], capture_output=True, text=True, timeout=60)
    assert stranger.returncode != 0 and "TLS" in stranger.stderr, stranger.stderr


def test_a_request_enters_at_any_node(trio):
    first, second, third = trio
    first.cli("import", str(SMOLLM2), "--name", "smollm2")
    unknown = httpx.post(f"{second.url}/v1/completions", json={"model": "smollm2", "prompt": "x"})
    assert unknown.status_code == 404, unknown.text
    first.start_model("smollm2", slots=2)
    wait_until(lambda: any(m["id"].startswith("smollm2") for m in httpx.get(f"{second.url}/v1/models").json()["data"]),
               what="the news on the second node")
    text = ask(first)
    for node in (second, third):
        assert ask(node) == text
        assert node.cli("run", "smollm2:latest", "--max-tokens", "8", "--temperature", "0", "Hello").stdout
        assert not node.deployments()  # nothing was loaded there

    # A client that leaves frees its slot on the other node; one that reads gets the events as they come.
    body = {"model": "smollm2", "prompt": "Once upon a time", "max_tokens": 400, "temperature": 0, "stream": True, "ignore_eos": True}

    def busy():
        return sum(s.get("busy", False) for s in first.deployment("smollm2:latest")["engine"]["slots"])
    with httpx.stream("POST", f"{second.url}/v1/completions", json=body, timeout=60) as r:
        assert r.status_code == 200
        lines = r.iter_lines()  # held: the stream ends with it
        next(lines)
        wait_until(lambda: busy() == 1, what="a busy slot")
    wait_until(lambda: busy() == 0, what="a free slot")

    # Its errors are those that the other node gives.
    bad = httpx.post(f"{second.url}/v1/completions", json={"model": "smollm2", "prompt": "x", "temperature": "hot"})
    assert bad.status_code == 400 and "temperature" in bad.text

    # A node that dies in the middle ends the stream with an error, and no other one.
    with httpx.stream("POST", f"{third.url}/v1/completions", json=body, timeout=60) as r:
        lines = r.iter_lines()
        next(lines)
        first.stop(signal.SIGKILL)
        rest = "\n".join(lines)
    assert '"error"' in rest and first.name in rest, rest[-500:]
    assert "[DONE]" not in rest
    wait_until(lambda: third.states()[first.name] == "SILENT", what="silence")
    assert httpx.post(f"{third.url}/v1/completions", json={**body, "stream": False}).status_code == 404


def test_fewer_nodes_are_chosen_and_too_many_refused(trio):
    first = trio[0]
    first.cli("import", str(SMOLLM2), "--name", "smollm2")
    first.cli("deploy", "smollm2", "--nodes", "2")
    executors = {p["executor"] for p in first.deployment("smollm2:latest")["engine"]["parts"]}
    assert len(executors) == 2
    assert first.nodes()[first.name]["executorAddress"] in executors
    refused = first.cli("deploy", "smollm2", "--nodes", "4", check=False)
    assert refused.returncode == 1 and "4 nodes are wanted, 3 are ready" in refused.stderr


def test_a_machine_that_is_lost_comes_back(trio):
    first, second, third = trio
    executor = int(re.search(r"executor node-3 on \S+ \(process (\d+)\)", third.log())[1])
    third.stop(signal.SIGKILL)
    assert alive(executor)  # models of other nodes go on
    for node in (first, second):
        wait_until(lambda: node.states()[third.name] == "SILENT", what="silence")
    third.start()
    for node in trio:
        wait_until(lambda: ready_with_executors(node) == 3, what="its return")
    assert f"(process {executor}) is adopted" in third.log()
    assert not third.deployments() and alive(executor)  # it is taken for nothing else
    third.stop()
    assert not alive(executor)


def test_the_first_node_comes_back(trio):
    first, second, third = trio
    first.stop(signal.SIGKILL)
    wait_until(lambda: second.states() == {first.name: "SILENT", "node-2": "READY", "node-3": "SILENT"}, what="silence")
    first.start()
    for node in trio:
        wait_until(lambda: ready_with_executors(node) == 3, what="its return")


def test_a_removed_node_is_out_until_it_joins_again(trio):
    first, second, third = trio
    first.cli("node", "rm", "node-3")
    assert "node-3" not in first.nodes()
    wait_until(lambda: "was removed from the cluster" in third.log(), what="the news")
    assert third.states()[first.name] == "SILENT"
    unknown = first.cli("node", "rm", "node-3", check=False)
    assert unknown.returncode == 1 and "no node" in unknown.stderr
    itself = first.cli("node", "rm", first.name, check=False)
    assert itself.returncode == 1 and "the cluster's state" in itself.stderr
    third.join(second, "node-3", first.token()["token"])  # through any node
    wait_until(lambda: ready_with_executors(first) == 3, what="its return")


def test_a_node_leaves(trio):
    first, second, third = trio
    executor = third.nodes()["node-3"]["executorAddress"]
    third.cli("leave")
    (node,) = third.json("nodes")["nodes"]
    assert not node["cluster"]
    wait_until(lambda: first.states()["node-3"] == "SILENT", what="silence")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(executor.rsplit(":", 1))
    said = first.cli("leave", check=False)
    assert said.returncode == 1 and "without it there is no cluster" in said.stderr
    first.cli("node", "rm", "node-3")
    third.join(first, "node-3")
    wait_until(lambda: ready_with_executors(first) == 3, what="its return")


def test_joining_is_refused(pair, tmp_path):
    first, other = pair
    good = first.token()["token"]
    id, secret, pin = good.split(".")
    assert "no join token" in other.refused("join", first.host, "--token", "x", "--cluster", other.host)
    for token in (f"{id}.{'0' * 32}.{pin}", f"00000000.{secret}.{pin}"):
        assert "not known here" in other.refused("join", first.host, "--token", token, "--cluster", other.host)
    # Of another cluster: whoever answers is not the one that the token is for, and is told nothing.
    pinned_otherwise = other.refused("join", first.host, "--token", f"{id}.{secret}.{'0' * 64}", "--cluster", other.host)
    assert "not a node of the cluster that the token is for" in pinned_otherwise
    assert secret not in first.log()

    once = first.token("--uses", "1")["token"]
    revoked = first.token()["token"]
    first.cli("token", "rm", revoked.split(".")[0])
    assert "not known here" in other.refused("join", first.host, "--token", revoked, "--cluster", other.host)
    short = first.token("--ttl", "1ms")["token"]
    assert "has expired" in other.refused("join", first.host, "--token", short, "--cluster", other.host)
    assert "already in use" in other.refused("join", first.host, "--token", good, "--cluster", first.host)
    assert "can reach" in other.refused("join", first.host, "--token", good, "--cluster", "0.0.0.0")
    assert "can't be called" in other.refused("join", first.host, "--token", good, "--name", "a/b", "--cluster", other.host)
    assert "reach" in other.refused("join", f"{new_host()}:7421", "--token", good, "--cluster", other.host)
    # Something else that answers there.
    assert "not as a node" in other.refused("join", f"127.0.0.1:{first.port}", "--token", good, "--cluster", other.host)

    other.join(first, "other", once)
    again = other.join(first, "other", good, check=False)
    assert again.returncode == 1 and "already" in again.stderr
    third = Node(tmp_path / "third")
    try:
        third.start()
        assert "as often as it may be" in third.refused("join", first.host, "--token", once, "--cluster", third.host)
    finally:
        third.stop()
    assert [t["id"] for t in first.json("token", "ls")["tokens"]] == [id]


def test_alone_there_is_no_cluster(daemon):
    (node,) = daemon.json("nodes")["nodes"]
    assert not node["cluster"] and node["state"] == "STATE_UNSPECIFIED"
    for words in (("token", "create"), ("deploy", "smollm2")):
        done = daemon.cli(*words, check=False)
        assert done.returncode == 1 and "is in no cluster" in done.stderr, done.stderr


def test_a_silent_port_ends_a_join(pair):
    first, other = pair
    with socket.create_server((new_host(), 0)) as silent:
        host, port = silent.getsockname()
        said = other.refused("join", f"{host}:{port}", "--token", first.token()["token"], "--cluster", other.host)
        assert "says nothing" in said


def test_only_the_first_node_has_the_authority(trio):
    second = trio[1]
    for words in (("token", "create"), ("token", "ls"), ("node", "rm", "node-3")):
        done = second.cli(*words, check=False)
        assert done.returncode == 1 and trio[0].host in done.stderr, done.stderr


def test_who_belongs_is_not_decided_over_http(pair):
    first = pair[0]
    for method in ("Cluster/CreateToken", "Cluster/RemoveNode", "Cluster/Join", "Membership/Admit", "Membership/Heartbeat"):
        assert httpx.post(f"{first.url}/strata.v1.{method}", json={}).status_code == 404
    assert httpx.post(f"{first.url}/strata.v1.Cluster/ListNodes", json={}).status_code == 200


def test_nothing_listens_beyond_loopback_without_certificates(tmp_path):
    engine = subprocess.run([BIN / "strata-engine", "executor", "--listen", "0.0.0.0:0"], capture_output=True, text=True, timeout=60)
    assert engine.returncode != 0 and "with certificates only" in engine.stderr
    node = Node(tmp_path / "home")
    node.options = ("--cluster", "0.0.0.0")
    node.home.mkdir()
    done = subprocess.run([BIN / "stratad", "--home", node.home, "--listen", "127.0.0.1:0", *node.options], capture_output=True,
                          text=True, timeout=60)
    assert done.returncode != 0 and "can reach" in done.stderr


def test_secrets_are_not_lying_about(pair):
    first, other = pair
    other.join(first, "other")
    for node in pair:
        for path in (node.home / "cluster").rglob("*"):
            if path.is_file() and path.name in ("key.pem", "seal.key"):
                assert path.stat().st_mode & 0o077 == 0, path
            if path.is_file() and path.name != "key.pem":
                assert b"PRIVATE KEY" not in path.read_bytes(), path
    assert not (other.home / "cluster" / "cluster.db").exists()


def test_up_and_down(tmp_path):
    env = {**os.environ, "STRATA_HOME": str(tmp_path / "home"), "NO_COLOR": "1"}
    strata = str(BIN / "strata")
    try:
        up = subprocess.run([strata, "up", "--nodes", "2"], env=env, capture_output=True, text=True, timeout=120)
        assert up.returncode == 0, up.stderr
        home = re.search(r"export STRATA_HOME=(.+)", up.stdout)[1]
        nodes = Daemon(pathlib.Path(home)).json("nodes")["nodes"]
        assert len(nodes) == 2
        again = subprocess.run([strata, "up", "--nodes", "3", "--json"], env=env, capture_output=True, text=True, timeout=120)
        assert again.returncode == 0, again.stderr
        assert [n["name"] for n in json.loads(again.stdout)["nodes"]][1:] == ["node-2", "node-3"]
        (itself, *_) = Daemon(pathlib.Path(home).parent / "node-2").json("nodes")["nodes"]
        os.kill(int(itself["pid"]), signal.SIGKILL)  # what it started is ended all the same
    finally:
        down = subprocess.run([strata, "down"], env=env, capture_output=True, text=True, timeout=120)
    assert down.returncode == 0, down.stderr
    assert not (tmp_path / "home" / "up").exists()
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert not [line for line in left.splitlines() if str(tmp_path) in line and "strata" in line.split()[0]], left
