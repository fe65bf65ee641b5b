#!/usr/bin/env python3
"""clang-tidy over the C++ files of the tree, two at a time; a file whose content, headers and checks did not change since
it was last clean is not looked at again (the record lies in the cache).  usage: tidy.py BUILD-FOLDER"""
import concurrent.futures
import functools
import hashlib
import json
import pathlib
import shlex
import subprocess
import sys

from fetch import cache_dir

build = pathlib.Path(sys.argv[1]).resolve()
root = pathlib.Path(__file__).resolve().parent.parent
cache = cache_dir() / "tidy"
cache.mkdir(parents=True, exist_ok=True)

commands = {c["file"]: c for c in json.load(open(build / "compile_commands.json"))}
tracked = subprocess.run(["git", "ls-files", "src", "examples", "bench"], cwd=root, check=True,
                         capture_output=True, text=True).stdout.split()


def headers_of() -> dict[str, list[str]]:
    """What each object was made from, of this tree and of the build folder, as the last build saw it."""
    log = subprocess.run(["ninja", "-C", str(build), "-t", "deps"], check=True, capture_output=True, text=True).stdout
    found: dict[str, list[str]] = {}
    for block in log.split("\n\n"):
        lines = block.splitlines()
        if lines and ": #deps" in lines[0]:
            paths = ((build / line.strip()).resolve() for line in lines[1:])
            found[lines[0].split(": #deps")[0]] = sorted(str(p) for p in paths if root in p.parents)
    return found


headers = headers_of()


@functools.cache
def digest(path: str) -> bytes:
    return hashlib.sha256(pathlib.Path(path).read_bytes()).digest()


def check(name: str):
    command = commands[str(root / name)]["command"].replace(str(root), ".")
    key = hashlib.sha256(command.encode())
    for folder in reversed((root / name).parents):  # the checks of a folder add to those above it
        if (folder / ".clang-tidy").exists():
            key.update(digest(str(folder / ".clang-tidy")))
    words = shlex.split(command)
    for path in headers[words[words.index("-o") + 1]]:
        key.update(str(pathlib.Path(path).relative_to(root)).encode() + digest(path))
    record = cache / key.hexdigest()
    if record.exists():
        return name, ""
    run = subprocess.run(["clang-tidy-14", "-quiet", "-p", str(build), str(root / name)], capture_output=True, text=True)
    if run.returncode == 0:
        record.touch()
        return name, ""
    return name, run.stdout + "".join(line + "\n" for line in run.stderr.splitlines() if "warnings generated" not in line)


names = [n for n in tracked if n.endswith(".cpp") and str(root / n) in commands and not n.endswith("_test.cpp")]
failed = []
with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
    for done, (name, output) in enumerate(pool.map(check, names), 1):
        if output:
            failed.append(name)
            print(output)
        elif sys.stdout.isatty():
            print(f"\r\033[K[{done}/{len(names)}] {name}", end="", flush=True)
print(f"clang-tidy: {len(names)} files, {len(failed)} with findings")
sys.exit(1 if failed else 0)
