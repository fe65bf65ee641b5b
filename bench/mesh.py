#!/usr/bin/env python3
"""One model over executors on this machine, beside llama.cpp's ggml-rpc-server of the same tree and a local run: llama-bench
is the driver of all three, every process has one thread, every server a core, and each side its best micro-batch."""
import contextlib
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading

from common import ON_MESH, ROOT, SMOLLM2_BY_TYPE, Report, certificates, executors, free_port, options, wait_until

CORES = sorted(os.sched_getaffinity(0))[:2]
MICRO_BATCHES = (64, 128, 256, 512)
DECODED = 96
DELAY_MS = 5


def peers() -> pathlib.Path:
    out = subprocess.run([str(ROOT / "scripts" / "build-llama.sh"), "peers"], check=True, capture_output=True, text=True)
    return pathlib.Path(out.stdout.strip()) / "bin"


class Side:
    """llama-bench with what makes it local, or the driver of a mesh or of RPC servers."""

    def __init__(self, programs: pathlib.Path, args=(), env=None, core=None):
        self.command = [*(["taskset", "-c", str(core)] if core is not None else []), str(programs / "llama-bench"), "-o", "json",
                        "-r", "1", "-t", "1", *args]
        self.env = env

    def run(self, model: str, *args: str) -> list[dict]:
        done = subprocess.run([*self.command, "-m", str(SMOLLM2_BY_TYPE[model]), *args], env=self.env, check=True,
                              stdin=subprocess.DEVNULL, capture_output=True, text=True)
        return json.loads(done.stdout)

    def decode(self, model: str, tokens=DECODED) -> float:
        return self.run(model, "-p", "0", "-n", str(tokens))[0]["avg_ts"]

    @functools.cache
    def best_micro_batch(self, model: str) -> int:
        runs = self.run(model, "-p", "1024", "-n", "0", "-ub", ",".join(map(str, MICRO_BATCHES)))
        return max(runs, key=lambda run: run["avg_ts"])["n_ubatch"]

    def prefill(self, model: str, tokens: int) -> float:
        micro_batch = self.best_micro_batch(model)
        return self.run(model, "-p", str(tokens), "-n", "0", "-ub", str(micro_batch), "-b", "2048")[0]["avg_ts"]


@contextlib.contextmanager
def rpc_servers(programs: pathlib.Path, count: int):
    processes, addresses = [], []
    try:
        for i in range(count):
            port = free_port()
            addresses.append(f"127.0.0.1:{port}")
            processes.append(subprocess.Popen(["taskset", "-c", str(CORES[i % len(CORES)]), str(programs / "ggml-rpc-server"), "-t",
                                               "1", "-d", "CPU", "-p", str(port)], stdin=subprocess.DEVNULL,
                                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        # A connection to look whether it listens would be its one client for a while: look at the sockets instead.
        for address in addresses:
            hexadecimal = f"0100007F:{int(address.rsplit(':', 1)[1]):04X} 00000000:0000 0A"
            wait_until(lambda: hexadecimal in pathlib.Path("/proc/net/tcp").read_text(), 20, f"the RPC server on {address}")
        yield addresses
    finally:
        for process in processes:
            process.terminate()
            process.wait(20)


@contextlib.contextmanager
def delayed(addresses: list[str]):
    process = subprocess.Popen([sys.executable, str(ROOT / "bench" / "delay.py"), str(DELAY_MS), *addresses],
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().split()
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


def rpc_args(addresses: list[str]) -> list[str]:
    return ["-rpc", ",".join(addresses), "-dev", "/".join(f"RPC{i}" for i in range(len(addresses))), "-ngl", "99"]


def together(side: Side, model: str) -> float:
    """The sum of two drivers' tokens per second; long, so that the time in which one is alone counts little."""
    speeds = [0.0, 0.0]

    def one(i: int) -> None:
        speeds[i] = side.decode(model, 6 * DECODED)
    threads = [threading.Thread(target=one, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(speeds)


def main() -> None:
    args = options(__doc__, rounds=9)
    report = Report("mesh", args.only)
    programs = peers()
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="strata-bench-")))
        mesh = stack.enter_context(executors(folder, 2, cores=CORES))
        servers = stack.enter_context(rpc_servers(programs, 2))
        local = Side(programs, ("-ngl", "0"), core=CORES[0])
        ours = {n: Side(programs, ON_MESH, mesh.env(n)) for n in (1, 2)}
        (certificate,) = certificates(folder / "tls", "engine")
        tls_mesh = stack.enter_context(executors(folder / "tls", 2, "--tls", str(certificate), cores=CORES))
        tls = Side(programs, ON_MESH, tls_mesh.env(tls=certificate))
        eight_cuts = Side(programs, ON_MESH, mesh.env(2, cuts=8))
        rpc = {n: Side(programs, rpc_args(servers[:n])) for n in (1, 2)}

        for model, rpc_goals in (("q4_0", (1.6, 1.7, 1.3, 1.15, 1.2)), ("q4_k_m", (1.05, 1.05, 1.0, 1.15, 1.2))):
            def both(name, measure, n, to_local, to_rpc, rounds=args.rounds):
                report.beside(f"{model} {name}", "tokens/s", lambda: measure(ours[n]),
                              {"local": (lambda: measure(local), to_local), "RPC": (lambda: measure(rpc[n]), to_rpc)}, rounds)
            both("decode, 1 executor", lambda s: s.decode(model), 1, 0.95, rpc_goals[0])
            both("decode, 2 executors", lambda s: s.decode(model), 2, 0.90, rpc_goals[1])
            report.beside(f"{model} decode, 8 cuts over 2 executors", "tokens/s", lambda: eight_cuts.decode(model),
                          {"local": (lambda: local.decode(model), 0.80)}, args.rounds)
            report.beside(f"{model} decode, 2 executors, with TLS", "tokens/s", lambda: tls.decode(model),
                          {"without": (lambda: ours[2].decode(model), 0.95)}, args.rounds)
            both("prefill 512, 1 executor", lambda s: s.prefill(model, 512), 1, 0.95, rpc_goals[2])
            both("prefill 2048, 2 executors", lambda s: s.prefill(model, 2048), 2, 1.65, rpc_goals[3])
            both("prefill 8192, 2 executors", lambda s: s.prefill(model, 8192), 2, 1.75, rpc_goals[4], max(3, args.rounds // 3))

        for cuts in (2, 4, 15, 30):
            report.pair(f"q4_0 decode, {cuts} cuts over 2 executors, against 1 cut", "tokens/s",
                        lambda side=Side(programs, ON_MESH, mesh.env(2, cuts=cuts)): side.decode("q4_0"),
                        lambda: ours[2].decode("q4_0"), args.rounds)
        report.beside("q4_0 decode, 2 executors, two drivers", "tokens/s", lambda: together(ours[2], "q4_0"),
                      {"one driver": (lambda: ours[2].decode("q4_0", 6 * DECODED), 1.7)}, max(3, args.rounds // 3))
        with delayed(mesh.addresses) as links, delayed(servers) as rpc_links:
            far = Side(programs, ON_MESH, {**mesh.env(), "STRATA_MESH": ",".join(links)})
            far_rpc = Side(programs, rpc_args(rpc_links))
            name = f"q4_0 decode, 2 executors, {DELAY_MS} ms one way"
            report.beside(name, "tokens/s", lambda: far.decode("q4_0"), {"RPC": (lambda: far_rpc.decode("q4_0"), 1.5)}, args.rounds)
            # Driver to the first part, to the second, back: what can't be had for less, and what is computed.
            report.pair(f"{name}, against 3 x {DELAY_MS} ms + local", "ms/token", lambda: 1000 / far.decode("q4_0"),
                        lambda: 3 * DELAY_MS + 1000 / local.decode("q4_0"), args.rounds, at_most=1.15)
    report.finish()


if __name__ == "__main__":
    main()
