#!/usr/bin/env python3
"""A cluster on this machine: how long machines take to become nodes, and what it costs that a request enters at another node than
the one that answers it."""
import contextlib
import pathlib
import statistics
import tempfile
import time

import httpx

from common import MODELS, Report, options
from test_cluster import ready_with_executors, started

MODEL = MODELS / "smollm2-135m-instruct-q4_1.gguf"


def wait_for(condition) -> None:
    while not condition():
        time.sleep(0.005)


def join_all(nodes) -> float:
    """Seconds until two more machines are nodes that can work, one after the other, certificates included."""
    first, *others = nodes
    token = first.token()["token"]
    begin = time.perf_counter()
    for i, node in enumerate(others, start=2):
        node.join(first, f"node-{i}", token)
    wait_for(lambda: ready_with_executors(first) == len(nodes))
    return time.perf_counter() - begin


def first_token_ms(client: httpx.Client, url: str) -> float:
    body = {"model": "smollm2", "prompt": "Hello", "max_tokens": 1, "temperature": 0, "stream": True}
    begin = time.perf_counter()
    with client.stream("POST", f"{url}/v1/completions", json=body) as r:
        assert r.status_code == 200, r.read()
        lines = r.iter_lines()
        next(line for line in lines if line.startswith("data: {"))
        elapsed = time.perf_counter() - begin
        for _ in lines:
            pass
    return 1000 * elapsed


def main() -> None:
    args = options(__doc__, rounds=5)
    report = Report("cluster", args.only)
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="strata-bench-")))
        times = []
        for i in range(args.rounds):
            with started(folder / f"round-{i}", 3) as nodes:
                times.append(join_all(nodes))
        report.single("two machines join: until all three nodes can work", "s", statistics.median(times), at_most=2.0)

        nodes = stack.enter_context(started(folder / "relay", 3))
        join_all(nodes)
        nodes[0].cli("import", str(MODEL), "--name", "smollm2")
        nodes[0].start_model("smollm2")
        client = stack.enter_context(httpx.Client(timeout=60))
        wait_for(lambda: client.post(f"{nodes[1].url}/v1/completions", json={"model": "smollm2", "prompt": "x", "max_tokens": 1}
                                     ).status_code == 200)
        report.pair("first token through another node, against the one that answers", "ms",
                    lambda: first_token_ms(client, nodes[1].url), lambda: first_token_ms(client, nodes[0].url),
                    40 * args.rounds, at_most=3.0, difference=True)
    report.finish()


if __name__ == "__main__":
    main()
