#!/usr/bin/env python3
"""clang-tidy over the C++ files of the tree, two at a time; a file whose content, headers and checks did not change since
it was last clean is not looked at again (the record lies in the cache).  usage: tidy.py BUILD-FOLDER"""
import concurrent.futures
import hashlib
import json
import pathlib
import subprocess
import sys

from fetch import cache_dir

build = pathlib.Path(sys.argv[1])
root = pathlib.Path(__file__).resolve().parent.parent
cache = cache_dir() / "tidy"
cache.mkdir(parents=True, exist_ok=True)

commands = {c["file"]: c for c in json.load(open(build / "compile_commands.json"))}
tracked = subprocess.run(["git", "ls-files", "src", "examples", "bench", "include", "proto"], cwd=root, check=True,
                         capture_output=True, text=True).stdout.split()
# One change in a header may change what any file means; hashing all headers is simple and errs on the side of looking.
headers = hashlib.sha256()
for name in [".clang-tidy"] + sorted(n for n in tracked if n.endswith((".h", ".proto"))):
    headers.update(name.encode() + b"\0" + (root / name).read_bytes())


def check(name: str):
    path = root / name
    record = cache / hashlib.sha256(headers.digest() + name.encode() + path.read_bytes()).hexdigest()
    if record.exists():
        return name, ""
    run = subprocess.run(["clang-tidy-14", "-quiet", "-p", str(build), str(path)], capture_output=True, text=True)
    if run.returncode == 0:
        record.touch()
        return name, ""
    return name, run.stdout + run.stderr


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
