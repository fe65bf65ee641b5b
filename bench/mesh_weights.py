#!/usr/bin/env python3
"""How the weights of a model get to its executors, and what lies where: a synthetic model of 4 GB from empty stores beside a
plain TCP copy to disk, again from memory and from disk, what all that holds in memory; layers that move while SmolLM2
writes; what a token costs on each link."""
import concurrent.futures
import contextlib
import os
import pathlib
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import gguf
import numpy

from common import BIN, SMOLLM2_BY_TYPE, Daemon, Report, executors, options, progress, running
from serve import Api, in_parallel
import synthetic_models

CORES = sorted(os.sched_getaffinity(0))[:2]
BLOCKS, WIDTH, FEED, KV_WIDTH = 32, 4096, 14336, 1024  # as Llama 3 8B; in Q4_0 4 GB with a small vocabulary
OPTIONS = {"contextTokens": 512, "slots": 2, "threads": 1}


def large_model(file: pathlib.Path) -> None:
    """Random bits where weights would be, under scales that keep results finite. One tensor at a time is in memory."""
    model = synthetic_models.Model("llama", gguf.GGUFReader(SMOLLM2_BY_TYPE["q4_0"]), 0)
    writer = gguf.GGUFWriter(file, "llama")
    numbers = {"block_count": BLOCKS, "context_length": 2048, "embedding_length": WIDTH, "feed_forward_length": FEED,
               "attention.head_count": WIDTH // 128, "attention.head_count_kv": KV_WIDTH // 128, "rope.dimension_count": 128}
    for name, value, value_type, sub_type in model.keys[1:]:
        if name.startswith("tokenizer."):
            writer.add_key_value(name, value, value_type, sub_type)
    for name, value in numbers.items():
        writer.add_uint32(f"llama.{name}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    matrices = {"attn_q": (WIDTH, WIDTH), "attn_k": (WIDTH, KV_WIDTH), "attn_v": (WIDTH, KV_WIDTH), "attn_output": (WIDTH, WIDTH),
                "ffn_gate": (WIDTH, FEED), "ffn_up": (WIDTH, FEED), "ffn_down": (FEED, WIDTH)}
    tensors = {"token_embd.weight": (WIDTH, model.vocabulary_size), "output_norm.weight": (WIDTH,)}
    for i in range(BLOCKS):
        tensors |= {f"blk.{i}.{name}.weight": ne for name, ne in matrices.items()}
        tensors |= {f"blk.{i}.{name}.weight": (WIDTH,) for name in ("attn_norm", "ffn_norm")}
    q4_0 = gguf.GGMLQuantizationType.Q4_0
    for name, ne in tensors.items():
        if len(ne) == 1:
            writer.add_tensor_info(name, ne, numpy.dtype(numpy.float32), ne[0] * 4)
        else:
            shape = gguf.quant_shape_to_byte_shape((ne[1], ne[0]), q4_0)
            writer.add_tensor_info(name, shape, numpy.dtype(numpy.uint8), shape[0] * shape[1], q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for ne in tensors.values():
        if len(ne) == 1:
            writer.write_tensor_data(numpy.ones(ne, numpy.float32))
            continue
        blocks = numpy.frombuffer(model.random.bytes(ne[0] * ne[1] // 32 * 18), numpy.uint8).reshape(-1, 18).copy()
        blocks[:, :2] = numpy.frombuffer(numpy.float16(0.002).tobytes(), numpy.uint8)
        writer.write_tensor_data(blocks.reshape(ne[1], -1))
    writer.close()


def tcp_copy(files: list[pathlib.Path], folder: pathlib.Path) -> float:
    """Seconds to send the files over two connections to two processes that write what comes to disk, and sync it."""
    receivers = []
    for i in range(2):
        receivers.append(subprocess.Popen([sys.executable, "-c", RECEIVER, str(folder / f"copy-{i}")], stdout=subprocess.PIPE,
                                          text=True))
    ports = [int(receiver.stdout.readline()) for receiver in receivers]
    begin = time.perf_counter()

    def send(i: int) -> None:
        with socket.create_connection(("127.0.0.1", ports[i])) as connection:
            for file in files[i::2]:
                with open(file, "rb") as source:
                    connection.sendfile(source)
    in_parallel(send, 2)
    for receiver in receivers:
        assert receiver.wait(300) == 0
        receiver.stdout.close()
    seconds = time.perf_counter() - begin
    for i in range(2):
        (folder / f"copy-{i}").unlink()
    return seconds


RECEIVER = """
import os, socket, sys
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
connection, _ = listener.accept()
piece = memoryview(bytearray(1 << 20))
with open(sys.argv[1], "wb", buffering=0) as out:
    while (n := connection.recv_into(piece)):
        done = 0
        while done < n:
            done += out.write(piece[done:n])
    os.fsync(out.fileno())
"""


def load(daemon: Daemon, name: str, **more) -> float:
    """Seconds until the model is ready."""
    begin = time.perf_counter()
    daemon.start_model(name, **{**OPTIONS, **more})
    return time.perf_counter() - begin


def sent_bytes(daemon: Daemon, name: str) -> int:
    return sum(int(part.get("bytesOut", 0)) for part in daemon.deployment(f"{name}:latest")["engine"]["parts"])


def anonymous_bytes(pid: int) -> int:
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+)", text).group(1)) * 1024


def proportional_bytes(pid: int) -> int:
    """Resident memory in which each page counts once: every lane of a driver maps the embedding, which is 113 MB here."""
    text = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE).group(1)) * 1024


def loading(report: Report, folder: pathlib.Path, rounds: int) -> None:
    progress("a synthetic model of 4 GB")
    file = folder / "large.gguf"
    large_model(file)
    total = file.stat().st_size
    with running(folder / "home", models=((file, "large"), (file, "again"))) as daemon:
        file.unlink()
        blobs = list((folder / "home" / "store" / "blobs" / "sha256").iterdir())

        weights = sum(blob.stat().st_size for blob in blobs)
        ready = []

        def from_empty_stores() -> float:
            """Until all weights have their names in the executors' stores: hashed, synced. The executors repack meanwhile."""
            with executors(folder / "empty", 2, cores=CORES) as mesh, concurrent.futures.ThreadPoolExecutor(1) as pool:
                begin = time.perf_counter()
                loading = pool.submit(load, daemon, "large", on=mesh.addresses)
                stores = folder / "empty"
                while not loading.done() and sum(blob.stat().st_size for blob in stores.glob("*/**/sha256/*")) < 0.99 * weights:
                    time.sleep(0.01)
                seconds = time.perf_counter() - begin
                ready.append(loading.result())
                daemon.cli("stop", "large")
            shutil.rmtree(folder / "empty")
            return weights / 1e6 / seconds
        name = "load 4 GB, empty stores"
        report.pair(f"{name}, against a TCP copy with fsync", "MB/s", from_empty_stores,
                    lambda: weights / 1e6 / tcp_copy(blobs, folder), rounds, at_least=0.8, warm_up=0)
        if ready:
            report.single(f"{name}: until it answers", "s", statistics.median(ready))

        if report.wants("load 4 GB again"):
            with executors(folder / "mesh", 2, cores=CORES) as mesh:
                load(daemon, "large", on=mesh.addresses)
                daemon.cli("stop", "large")
                report.single("load 4 GB again, weights still in memory", "s", load(daemon, "large", on=mesh.addresses), at_most=1.0)
                report.single("load 4 GB again: bytes sent", "MB", sent_bytes(daemon, "large") / 1e6, at_most=1.0)
                engine = int(daemon.deployment("large:latest")["enginePid"])
                report.single("load 4 GB again: driver, resident", "MB", proportional_bytes(engine) / 1e6, at_most=300)
                held = sum(anonymous_bytes(process.pid) for process in mesh.processes)
                load(daemon, "again", on=mesh.addresses, lanes=2)
                for name in ("large", "again"):
                    Api(daemon.url).answer(name, "Once upon a time", 4)
                report.single("load 4 GB again: memory that a second deployment of two lanes adds", "MB",
                              (sum(anonymous_bytes(process.pid) for process in mesh.processes) - held) / 1e6, at_most=200)
                daemon.cli("stop", "large")
                daemon.cli("stop", "again")

            def from_disk() -> float:
                with executors(folder / "mesh", 2, cores=CORES) as restarted:
                    seconds = load(daemon, "large", on=restarted.addresses)
                    daemon.cli("stop", "large")
                return total / 1e6 / seconds

            def local() -> float:
                seconds = load(daemon, "large", **{"threads": 2})
                daemon.cli("stop", "large")
                return total / 1e6 / seconds
            report.pair("load 4 GB again, from the executors' disks, against a local load", "MB/s", from_disk, local, rounds,
                        at_least=0.8, warm_up=0)


def moving(report: Report, folder: pathlib.Path, rounds: int) -> None:
    if not report.wants("ten layers move"):
        return
    with running(folder / "home", models=((SMOLLM2_BY_TYPE["q4_0"], "m"),)) as daemon, executors(folder / "mesh", 2, cores=CORES) as mesh:
        load(daemon, "m", on=mesh.addresses, lanes=1)
        pauses = []
        for i in range(rounds):
            times: list[float] = []
            writing = threading.Thread(target=lambda: times.extend(Api(daemon.url).stream("Once upon a time", 200)))
            writing.start()
            time.sleep(0.5)
            subprocess.run([str(BIN / "strata-engine"), "bind", "--socket", str(daemon.engine_socket()), "--layers", "10-19",
                            "--to", mesh.addresses[i % 2]], check=True, capture_output=True)
            writing.join()
            pauses.append(max(b - a for a, b in zip(times, times[1:])))
        report.single("ten layers move during an answer: the longest pause", "ms", 1000 * max(pauses), at_most=100)


def lanes(report: Report, folder: pathlib.Path, rounds: int) -> None:
    """Tokens per second as the engine counts them, of answers that are not streamed."""
    name = "q4_0 decode, 2 lanes of one driver over 2 executors"
    if not report.wants(name):
        return
    with running(folder / "home", models=((SMOLLM2_BY_TYPE["q4_0"], "m"),)) as daemon, executors(folder / "mesh", 2, cores=CORES) as mesh:
        load(daemon, "m", on=mesh.addresses, lanes=2)
        api = Api(daemon.url)

        def speed(clients: int) -> float:
            speeds = [0.0] * clients

            def one(i: int) -> None:
                speeds[i] = api.answer("m", f"Story number {i}: once upon a time", 400)["timings"]["predicted_per_second"]
            in_parallel(one, clients)
            return sum(speeds)
        report.pair(f"{name}, against one", "tokens/s", lambda: speed(2), lambda: speed(1), rounds, at_least=1.7)


def links(report: Report, folder: pathlib.Path) -> None:
    """Bytes of each TCP connection between engines, as the kernel counts what was acknowledged."""
    if not report.wants("bytes per token"):
        return

    def acknowledged(mesh, driver: int) -> dict[str, int]:
        names = {driver: "driver", **{process.pid: f"executor {i + 1}" for i, process in enumerate(mesh.processes)}}
        text = subprocess.run(["ss", "-tnpiHO", "state", "established"], check=True, capture_output=True, text=True).stdout
        ends, sent = {}, {}
        for line in text.splitlines():
            _, _, local, peer = line.split()[:4]
            owner = names.get(int(re.search(r"pid=(\d+)", line).group(1))) if "pid=" in line else None
            if owner is not None:
                ends[local] = owner
                sent[local, peer] = int((re.search(r"bytes_acked:(\d+)", line) or [0, 0])[1])
        bytes: dict[str, int] = {}
        for (local, peer), count in sent.items():
            if peer in ends:
                link = f"{ends[local]} to {ends[peer]}"
                bytes[link] = bytes.get(link, 0) + count
        return bytes
    with running(folder / "home", models=((SMOLLM2_BY_TYPE["q4_0"], "m"),)) as daemon, executors(folder / "mesh", 2, cores=CORES) as mesh:
        load(daemon, "m", on=mesh.addresses, lanes=1)
        api, engine = Api(daemon.url), int(daemon.deployment("m:latest")["enginePid"])

        def chat(turns: int, tokens: int) -> None:
            messages = []
            for turn in range(turns):
                messages.append({"role": "user", "content": f"Question {turn}: why is the sea salt?"})
                said = api.chat("m", messages, tokens)
                messages.append({"role": "assistant", "content": said["choices"][0]["message"]["content"]})
        for what, work, tokens in (("bytes per token", lambda: api.answer("m", "Once upon a time", 200), 200),
                                   ("bytes per token, a chat of 5 turns", lambda: chat(5, 40), 200)):
            api.answer("m", "Once upon a time", 8)
            before = acknowledged(mesh, engine)
            work()
            after = acknowledged(mesh, engine)
            for link in sorted(after):
                report.single(f"{what}, {link}", "bytes", (after[link] - before.get(link, 0)) / tokens)


def main() -> None:
    args = options(__doc__, rounds=5)
    report = Report("mesh_weights", args.only)
    with contextlib.ExitStack() as stack:
        def folder() -> pathlib.Path:
            return pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="strata-bench-")))
        links(report, folder())
        moving(report, folder(), args.rounds)
        lanes(report, folder(), args.rounds)
        if report.wants("4 GB") or "4 GB" in args.only:
            loading(report, folder(), max(2, args.rounds // 2))
    report.finish()


if __name__ == "__main__":
    main()
