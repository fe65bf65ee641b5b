#!/usr/bin/env python3
"""Many clients at once: 1,000 SSE streams from a stub engine through one daemon (none lost, none late), 1,000 requests
waiting on a real engine, and the daemon's memory at rest and under load."""
import json
import subprocess
import threading
import time

from common import (BIN, MODELS, Report, llama_dir, llama_server, options, resident_bytes, running, temporary_home,
                    thread_count)

STREAMS, WAITING = 1000, 1000
FILE = MODELS / "smollm2-135m-instruct-q4_1.gguf"


class Peak:
    """The highest resident memory and thread count of processes while a block runs."""

    def __init__(self, *pids: int):
        self.pids = pids
        self.bytes, self.threads = {p: 0 for p in pids}, {p: 0 for p in pids}

    def __enter__(self):
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self) -> None:
        while not self.over.wait(0.05):
            for p in self.pids:
                self.bytes[p] = max(self.bytes[p], resident_bytes(p))
                self.threads[p] = max(self.threads[p], thread_count(p))

    def __exit__(self, *_) -> None:
        self.over.set()
        self.thread.join()


def client(*args) -> dict:
    done = subprocess.run([str(BIN / "strata-bench-client"), *map(str, args)], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def engine_pid(node) -> int:
    return int(node.deployment("m:latest")["enginePid"])


def stub_streams(report: Report) -> None:
    with temporary_home() as home, running(home, "--engine", str(BIN / "strata-stub-engine"), models=()) as node:
        # The stub engine imports nothing: the real engine's job does.
        subprocess.run([str(BIN / "strata-engine"), "import", "--store", str(home / "store"), "--name", "m", str(FILE)],
                       check=True, stdout=subprocess.DEVNULL)
        at_rest = resident_bytes(node.process.pid)
        report.single("daemon at rest, resident", "MB", at_rest / 1e6, at_most=40)
        node.start_model("m")
        threads_before = thread_count(node.process.pid)
        with Peak(node.process.pid) as peak:
            result = client("streams", "--port", node.port, "--model", "m", "--count", STREAMS)
        report.single(f"{STREAMS} streams: lost", "streams", STREAMS - result["complete"], at_most=0)
        report.single(f"{STREAMS} streams: event late, p50", "ms", result["late_p50_ms"])
        report.single(f"{STREAMS} streams: event late, p99", "ms", result["late_p99_ms"], at_most=50)
        report.single(f"{STREAMS} streams: events", "events/s", result["events_per_second"])
        report.single(f"{STREAMS} streams: daemon resident, peak", "MB", peak.bytes[node.process.pid] / 1e6, at_most=100)
        report.single(f"{STREAMS} streams: daemon threads added", "threads", peak.threads[node.process.pid] - threads_before,
                      at_most=4)


def waiting(report: Report) -> None:
    with temporary_home() as home, running(home, models=((FILE, "m"),)) as node:
        node.start_model("m", slots=8, contextTokens=512, threads=2)
        pid = engine_pid(node)
        node_before, engine_before = thread_count(node.process.pid), thread_count(pid)
        memory_before = resident_bytes(pid)
        with Peak(node.process.pid, pid) as peak:
            begin = time.monotonic()
            result = client("waiting", "--port", node.port, "--model", "m", "--count", WAITING)
            seconds = time.monotonic() - begin
        report.single(f"{WAITING} waiting: neither answered nor refused", "requests",
                      WAITING - result["answered"] - result["refused"], at_most=0)
        report.single(f"{WAITING} waiting: answered", "requests", result["answered"])
        report.single(f"{WAITING} waiting: requests", "requests/s", WAITING / seconds)
        report.single(f"{WAITING} waiting: engine threads added", "threads", peak.threads[pid] - engine_before, at_most=16)
        report.single(f"{WAITING} waiting: daemon threads added", "threads",
                      peak.threads[node.process.pid] - node_before, at_most=4)
        report.single(f"{WAITING} waiting: engine memory added", "MB", (peak.bytes[pid] - memory_before) / 1e6, at_most=100)
        report.single(f"{WAITING} waiting: daemon resident, peak", "MB", peak.bytes[node.process.pid] / 1e6, at_most=100)


def peer_waiting(report: Report) -> None:
    """What llama-server does with the same 1,000 requests: a thread each."""
    with llama_server(llama_dir(), FILE, "-np", "8", "-c", "4096", "-b", "512", "-ub", "512") as url:
        port = int(url.rsplit(":", 1)[1])
        result = client("waiting", "--port", port, "--model", "m", "--count", WAITING)
        report.single(f"{WAITING} waiting, llama-server: answered", "requests", result["answered"])


def main() -> None:
    args = options(__doc__, rounds=1)
    report = Report("streams", args.only)
    stub_streams(report)
    waiting(report)
    peer_waiting(report)
    report.finish()


if __name__ == "__main__":
    main()
