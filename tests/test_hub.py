"""`pull` against a server that behaves like the hub: checks, resuming, tokens, redirects, and sentences that say what to do."""
import hashlib
import json
import os
import signal
import subprocess
import time

import gguf
import numpy as np
import pytest

from conftest import BIN
from fake_hub import FakeHub, File

MEGABYTE = 1 << 20
URL = "hf://org/repo/model.gguf"
TOKEN = "hf_secret"


def model(path, megabytes=4, seed=1) -> bytes:
    """A GGUF of about that size that import takes."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(1)
    rng = np.random.default_rng(seed)
    writer.add_tensor("token_embd.weight", rng.random((megabytes * MEGABYTE // 4096 // 2, 1024), dtype=np.float32))
    writer.add_tensor("blk.0.attn_q.weight", rng.random((megabytes * MEGABYTE // 4096 // 2, 1024), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return model(tmp_path_factory.mktemp("hub") / "model.gguf")


@pytest.fixture
def hub(data):
    with FakeHub() as fake:
        fake.files["org/repo/model.gguf"] = File(data)
        yield fake


class Puller:
    def __init__(self, home, hub):
        self.home, self.hub = home, hub

    def command(self, url=URL):
        return [str(BIN / "strata-engine"), "pull", "--store", str(self.home / "store"), "--name", "m", url]

    def env(self, token=None, endpoint=None):
        env = {k: v for k, v in os.environ.items() if k not in ("HF_TOKEN", "HF_ENDPOINT")}
        env |= {"HF_ENDPOINT": endpoint or self.hub.url(), "no_proxy": "*"}
        return env | ({"HF_TOKEN": token} if token else {})

    def run(self, url=URL, **env):
        return subprocess.run(self.command(url), env=self.env(**env), capture_output=True, text=True, timeout=100)

    def ok(self, url=URL, **env):
        done = self.run(url, **env)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def refused(self, *words, url=URL, **env):
        done = self.run(url, **env)
        text = done.stdout + done.stderr
        assert done.returncode != 0, text
        for word in words:
            assert word in text
        assert not self.models(), "nothing may be in the store"
        return text

    def models(self):
        index = self.home / "store" / "index.json"
        return json.loads(index.read_text())["manifests"] if index.exists() else []

    def downloads(self):
        folder = self.home / "downloads"
        return sorted(f.name for f in folder.iterdir()) if folder.exists() else []


@pytest.fixture
def pull(tmp_path, hub):
    return Puller(tmp_path, hub)


def test_a_large_file(pull, hub, data):
    pull.ok(token=TOKEN)
    assert pull.models() and pull.downloads() == []
    (got,) = hub.of("cdn")
    assert got.sent == len(data)
    # The hub sees the token, the host that it redirects to does not.
    assert all(r.headers["authorization"] == f"Bearer {TOKEN}" for r in hub.requests if r.server == "hub")
    assert "authorization" not in got.headers and TOKEN not in json.dumps([r.headers for r in hub.of("cdn")])


def test_a_small_file_with_gits_hash(pull, hub, data):
    hub.files["org/repo/model.gguf"].large = False
    pull.ok(url=URL + "@v1")
    assert not hub.of("cdn")
    assert hub.of("hub")[-1].path == "/org/repo/resolve/v1/model.gguf"


def test_cut_connections_are_resumed(pull, hub, data):
    hub.cuts = [MEGABYTE + 11, MEGABYTE + 5, 100]
    pull.ok()
    gets = hub.of("cdn")
    assert len(gets) == 4 and sum(r.sent for r in gets) == len(data)
    assert [r.headers.get("range") for r in gets[:2]] == [None, f"bytes={MEGABYTE + 11}-"]
    assert gets[1].headers["if-range"].startswith('"cdn-')


def interrupted(pull, hub) -> int:
    """A pull that is killed after a megabyte or more; returns how much it left."""
    hub.bytes_per_second = 4 * MEGABYTE
    job = subprocess.Popen(pull.command(), env=pull.env(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = pull.home / "downloads"
    end = time.monotonic() + 30
    while not any(f.stat().st_size > MEGABYTE for f in folder.glob("*.part")):
        assert job.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    job.send_signal(signal.SIGKILL)
    job.wait()
    hub.bytes_per_second = None
    hub.requests.clear()
    return next(folder.glob("*.part")).stat().st_size


def test_a_killed_download_is_resumed(pull, hub, data):
    kept = interrupted(pull, hub)
    pull.ok()
    (got,) = hub.of("cdn")
    assert got.headers["range"] == f"bytes={kept}-" and got.sent == len(data) - kept
    assert pull.downloads() == []


def test_other_content_is_not_appended_to_what_is_there(pull, hub, tmp_path):
    interrupted(pull, hub)
    hub.files["org/repo/model.gguf"] = File(model(tmp_path / "other.gguf", seed=2))
    pull.ok()
    (got,) = hub.of("cdn")
    assert "range" not in got.headers


def test_a_cdn_with_another_etag_starts_anew(pull, hub, data):
    kept = interrupted(pull, hub)
    hub.cdn_etag = '"another"'
    pull.ok()
    (got,) = hub.of("cdn")
    assert got.headers["range"] == f"bytes={kept}-" and got.sent == len(data)


@pytest.mark.parametrize("fault", ["ignore_range", "shift_range"])
def test_servers_that_are_bad_at_ranges(pull, hub, fault):
    interrupted(pull, hub)
    setattr(hub, fault, True)
    pull.ok()


def test_a_damaged_part_is_thrown_away(pull, hub, data):
    kept = interrupted(pull, hub)
    (part,) = (pull.home / "downloads").glob("*.part")
    with open(part, "r+b") as f:
        f.write(b"XXXX")
    pull.ok()
    assert sum(r.sent for r in hub.of("cdn")) == len(data) - kept + len(data)


def test_wrong_bytes(pull, hub, data):
    hub.wrong_bytes = True
    pull.refused(hashlib.sha256(data).hexdigest())
    assert not [f for f in pull.downloads() if f.endswith(".gguf")]
    hub.wrong_bytes = False
    pull.ok()


def test_more_bytes_than_stated(pull, hub):
    hub.more_bytes = True
    pull.refused("more than the")


def test_a_size_that_no_disk_has(pull, hub):
    hub.stated_size = 1 << 60
    pull.refused("has room for")
    assert not hub.of("cdn")


@pytest.mark.parametrize("stated", ["../../etc/passwd", "x", "0" * 63, "A" * 64])
def test_a_hash_that_is_none(pull, hub, stated):
    hub.stated_hash = stated
    pull.refused("does not state size and hash")


def test_tokens_and_licences(pull, hub):
    file = hub.files["org/repo/model.gguf"]
    file.token = TOKEN
    pull.refused("HF_TOKEN", "org/repo")
    pull.refused("does not take the token", token="hf_wrong")
    file.licence = True
    pull.refused("accept its licence at", "org/repo", token=TOKEN)
    file.licence = False
    pull.ok(token=TOKEN)


def test_a_token_is_not_sent_in_clear_text_to_another_machine(pull, hub):
    """The fake hub as a proxy plays a hub of another name."""
    hub.files["org/repo/model.gguf"].large = False
    env = pull.env(token=TOKEN, endpoint="http://hub.example") | {"http_proxy": hub.url(), "no_proxy": ""}
    done = subprocess.run(pull.command(), env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert hub.of("hub")[0].path.startswith("http://hub.example/")
    assert all("authorization" not in r.headers for r in hub.requests)


def test_a_broken_token(pull):
    text = pull.refused("HF_TOKEN", token="hf_x\r\nHost: evil")
    assert "evil" not in text


def test_what_is_not_there(pull, hub):
    pull.refused("has no file nothing.gguf", url="hf://org/repo/nothing.gguf")
    pull.refused("has no revision v9", url=URL + "@v9")
    pull.refused("no such repository", url="hf://org/other/model.gguf")
    pull.refused("hf://ORG/REPO/FILE", url="hf://org/../model.gguf")


def test_a_renamed_repository(pull, hub, data):
    hub.renamed["old/name"] = "org/repo"
    pull.ok(url="hf://old/name/model.gguf", token=TOKEN)
    assert "authorization" not in hub.of("cdn")[0].headers


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://127.0.0.1/x", "http://user:pw@127.0.0.1/"])
def test_redirects_that_leave_http(pull, hub, location):
    hub.location = location
    pull.refused("redirects to")


def test_redirects_in_circles(pull, hub):
    hub.location = "/org/repo/resolve/main/model.gguf"
    pull.refused("redirects more than")


def test_a_flood_of_headers(pull, hub):
    hub.header_flood = True
    pull.refused("headers take more than")


def test_a_busy_hub_and_links_that_run_out(pull, hub):
    hub.statuses = [("hub", 503, {"Retry-After": "1"}), ("cdn", 403, {}), ("hub", 429, {})]
    begin = time.monotonic()
    pull.ok()
    assert time.monotonic() - begin >= 1
    assert not hub.statuses


def test_nobody_there(pull, hub):
    pull.refused("127.0.0.1", "gave up", endpoint="http://127.0.0.1:9")
    pull.refused("not an http or https URL", endpoint="file:///tmp")


def test_a_split_model(pull, hub, tmp_path):
    names = [f"org/repo/m-{i + 1:05}-of-00002.gguf" for i in range(2)]
    for i, name in enumerate(names):
        path = tmp_path / f"{i}.gguf"
        writer = gguf.GGUFWriter(str(path), "llama")
        writer.add_uint16("split.no", i)
        if i == 0:
            writer.add_block_count(1)
            writer.add_uint16("split.count", 2)
            writer.add_int32("split.tensors.count", 2)
        writer.add_tensor("token_embd.weight" if i == 0 else "blk.0.attn_q.weight", np.ones((8, 32), dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        hub.files[name] = File(path.read_bytes())
    pull.ok(url="hf://org/repo/m-00002-of-00002.gguf")
    assert pull.models() and len(hub.of("cdn")) == 2 and pull.downloads() == []


def test_two_pulls_at_once_fetch_once(pull, hub, data):
    hub.bytes_per_second = 4 * MEGABYTE
    jobs = [subprocess.Popen(pull.command(), env=pull.env(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(2)]
    for job in jobs:
        _, err = job.communicate(timeout=60)
        assert job.returncode == 0, err
    assert pull.models()
