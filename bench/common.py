"""What the benchmarks share: paired samples, ratios with confidence intervals, the table and the JSON file."""
import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import shutil
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from conftest import (BIN, MODELS, ON_MESH, SMOLLM2_BY_TYPE, Daemon, certificates, executors, free_port,  # noqa: E402,F401
                      llama_server, running, wait_until)

OUT = ROOT / "bench" / "out"


def options(description: str, rounds: int) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=rounds, help=f"pairs of runs for each row (default {rounds})")
    parser.add_argument("--only", default="", help="only rows whose name contains this")
    return parser.parse_args()


def median_interval(values: list[float], confidence=0.95, resamples=5000) -> tuple[float, float]:
    """Bootstrap interval of the median (percentile method, Efron 1979); fixed seed, so that a report is reproducible."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(resamples))
    tail = (1 - confidence) / 2
    return medians[int(tail * resamples)], medians[int((1 - tail) * resamples) - 1]


@dataclasses.dataclass
class Row:
    name: str
    unit: str
    ours: float
    peer: float | None = None
    ratio: float | None = None
    interval: tuple[float, float] | None = None
    goal: str = ""
    met: bool | None = None


def llama_dir() -> pathlib.Path:
    """The pinned llama.cpp build, the peer."""
    out = subprocess.run([str(ROOT / "scripts" / "build-llama.sh"), "native"], check=True, capture_output=True, text=True)
    return pathlib.Path(out.stdout.strip())


class Report:
    def __init__(self, name: str, only: str = ""):
        self.name, self.only, self.rows = name, only, []

    def wants(self, row: str) -> bool:
        return self.only in row

    def pair(self, name: str, unit: str, ours, peer, rounds: int, at_least: float | None = None, at_most: float | None = None,
             warm_up: int = 1, difference: bool = False) -> None:
        """ours() and peer() measured in turn, who is first changing each round; the row holds medians and the median of the
        ratios of each pair (or of the differences)."""
        if not self.wants(name):
            return
        for _ in range(warm_up):
            ours(), peer()
        samples = []
        for i in range(rounds):
            progress(f"{name}: pair {i + 1} of {rounds}")
            if i % 2:
                b = peer()
                a = ours()
            else:
                a = ours()
                b = peer()
            samples.append((a, b))
        values = [a - b if difference else a / b for a, b in samples]
        median = statistics.median(values)
        what = "difference" if difference else "ratio"
        self.add(Row(name, unit, statistics.median(a for a, _ in samples), statistics.median(b for _, b in samples), median,
                     median_interval(values),
                     f"{what} >= {at_least}" if at_least is not None else f"{what} <= {at_most}" if at_most is not None else "",
                     median >= at_least if at_least is not None else median <= at_most if at_most is not None else None))

    def beside(self, name: str, unit: str, ours, peers: dict, rounds: int) -> None:
        """As pair(), with several peers in the same rounds: {who: (measure, at_least)} gives a row for each."""
        if not self.wants(name):
            return
        measures = {"": ours, **{who: measure for who, (measure, _) in peers.items()}}
        samples = []
        for i in range(-1, rounds):  # the first warms up
            progress(f"{name}: pair {i + 1} of {rounds}")
            order = list(measures)
            order = order[i % len(order):] + order[:i % len(order)]
            taken = {who: measures[who]() for who in order}
            samples += [taken] if i >= 0 else []
        for who, (_, at_least) in peers.items():
            ratios = [taken[""] / taken[who] for taken in samples]
            median = statistics.median(ratios)
            self.add(Row(f"{name}, against {who}", unit, statistics.median(taken[""] for taken in samples),
                         statistics.median(taken[who] for taken in samples), median, median_interval(ratios),
                         f"ratio >= {at_least}", median >= at_least))

    def single(self, name: str, unit: str, value: float, at_most: float | None = None, at_least: float | None = None) -> None:
        goal = f"<= {at_most}" if at_most is not None else f">= {at_least}" if at_least is not None else ""
        met = value <= at_most if at_most is not None else value >= at_least if at_least is not None else None
        self.add(Row(name, unit, value, goal=goal, met=met))

    def add(self, row: Row) -> None:
        progress("")
        self.rows.append(row)
        # What is measured so far, whatever becomes of the rest; the table comes at the end.
        print(f"{row.name}: {row.ours:.4g} {row.unit}" + ("" if row.ratio is None else f", {row.ratio:.3f}"), file=sys.stderr,
              flush=True)

    def finish(self) -> None:
        OUT.mkdir(parents=True, exist_ok=True)
        document = {"benchmark": self.name, "machine": machine(), "rows": [dataclasses.asdict(r) for r in self.rows]}
        (OUT / f"{self.name}.json").write_text(json.dumps(document, indent=1) + "\n")

        def number(x):
            return "" if x is None else f"{x:.3g}" if abs(x) < 100 else f"{x:.0f}"
        table = [["", "unit", "ours", "peer", "ratio", "95 %", "goal", "met"]]
        for r in self.rows:
            table.append([r.name, r.unit, number(r.ours), number(r.peer), "" if r.ratio is None else f"{r.ratio:.3f}",
                          "" if r.interval is None else f"{r.interval[0]:.3f}..{r.interval[1]:.3f}", r.goal,
                          "" if r.met is None else "yes" if r.met else "NO"])
        widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
        print()
        for line in table:
            print("  ".join(cell.ljust(w) if i in (0, 1, 6) else cell.rjust(w)
                            for i, (cell, w) in enumerate(zip(line, widths))).rstrip())
        print(f"\nwritten to bench/out/{self.name}.json")


def machine() -> dict:
    cpu = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "unknown")
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {"cpu": cpu, "cpus": os.cpu_count(), "commit": commit}


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    elif ": pair 1 of" in text:
        print(text.split(":")[0], file=sys.stderr, flush=True)


def resident_bytes(pid: int) -> int:
    return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def thread_count(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


@contextlib.contextmanager
def temporary_home():
    folder = tempfile.mkdtemp(prefix="strata-bench-")
    try:
        yield pathlib.Path(folder) / "home"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
