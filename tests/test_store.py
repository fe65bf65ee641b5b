"""The layer store through the CLI: import, sharing, damage, kills, full disks, and what other tools read of it."""
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import time

import gguf
import numpy as np
import pytest

from conftest import BIN, MINILM, SMOLLM2, running

MODEL_FILE = MINILM  # small and quick


def blobs(d) -> dict[str, int]:
    folder = d.home / "store" / "blobs" / "sha256"
    return {f.name: f.stat().st_size for f in folder.iterdir()} if folder.exists() else {}


def verify(d):
    return d.json("verify")


def test_import_list_show(daemon):
    daemon.cli("import", str(SMOLLM2), "--name", "smollm2")
    (model,) = daemon.json("ls")["models"]
    assert model["name"] == "smollm2:latest" and model["architecture"] == "llama" and model["quantization"] == "Q4_1"
    shown = daemon.json("show", "smollm2")
    kinds = [layer["kind"] for layer in shown["layers"]]
    assert kinds == ["head", "embedding"] + ["block"] * 30 + ["tail"]
    assert all(layer["digest"].startswith("sha256:") for layer in shown["layers"])
    text = daemon.cli("show", "smollm2").stdout
    assert "Q4_1" in text and "block" in text
    # Importing the same again changes nothing.
    before = blobs(daemon)
    daemon.cli("import", str(SMOLLM2), "--name", "smollm2")
    assert {k for k in blobs(daemon)} >= set(before)
    assert daemon.json("ls")["models"][0]["digest"] == model["digest"]


def flip_byte(source: pathlib.Path, target: pathlib.Path, tensor: str) -> None:
    """A copy of a model that differs in one byte of one tensor."""
    shutil.copy(source, target)
    reader = gguf.GGUFReader(str(source))
    found = next(t for t in reader.tensors if t.name == tensor)
    with open(target, "r+b") as f:
        f.seek(int(found.data_offset) + 10)
        byte = f.read(1)
        f.seek(-1, 1)
        f.write(bytes([byte[0] ^ 1]))


def test_models_that_differ_in_one_block_share_all_other_blobs(daemon, tmp_path):
    daemon.cli("import", str(SMOLLM2), "--name", "one")
    flip_byte(SMOLLM2, tmp_path / "two.gguf", "blk.5.ffn_up.weight")
    daemon.cli("import", str(tmp_path / "two.gguf"), "--name", "two")
    one, two = (daemon.json("show", name)["layers"] for name in ("one", "two"))
    different = [a["index"] if "index" in a else i for i, (a, b) in enumerate(zip(one, two)) if a["digest"] != b["digest"]]
    assert different == [7]  # head, embedding, blocks 0 to 4
    assert "one:latest" in two[3]["sharedWith"]


def test_a_split_model_gives_the_same_layers(daemon, llama, tmp_path):
    subprocess.run([str(llama / "bin" / "llama-gguf-split"), "--split-max-tensors", "60", str(SMOLLM2), str(tmp_path / "s")],
                   check=True, capture_output=True)
    parts = sorted(tmp_path.glob("s-*.gguf"))
    assert len(parts) > 2
    daemon.cli("import", str(SMOLLM2), "--name", "whole")
    random.Random(1).shuffle(parts)
    daemon.cli("import", *map(str, parts), "--name", "split")
    whole, split = (daemon.json("show", n)["layers"] for n in ("whole", "split"))
    assert [layer["digest"] for layer in whole] == [layer["digest"] for layer in split]
    missing = daemon.cli("import", *map(str, parts[1:]), "--name", "broken", check=False)
    assert missing.returncode == 1 and missing.stderr


def test_an_import_says_which_name_it_gave(daemon, tmp_path):
    assert daemon.cli("import", str(MODEL_FILE), "--name", "aaa").stdout.startswith("aaa:latest")
    assert daemon.cli("import", str(MODEL_FILE)).stdout.startswith("minilm:f16")  # the same content by another name
    other = tmp_path / "minilm-f16.gguf"
    other.symlink_to(SMOLLM2)
    done = daemon.cli("import", str(other))
    assert done.stdout.startswith("minilm:f16")
    assert "was the name of another model" in done.stderr


def test_every_layer_is_a_gguf_file(daemon):
    daemon.cli("import", str(MODEL_FILE), "--name", "m")
    for index, layer in enumerate(daemon.json("show", "m")["layers"]):
        reader = gguf.GGUFReader(str(daemon.home / "store" / "blobs" / "sha256" / layer["digest"][7:]))
        assert int(reader.fields["split.no"].parts[-1][0]) == index
        assert (len(reader.tensors) == 0) == (index == 0) or layer["kind"] == "tail"


def test_a_flipped_byte_is_found_and_named(daemon):
    daemon.cli("import", str(MODEL_FILE), "--name", "m")
    size = daemon.json("ls")["models"][0]["sizeBytes"]
    assert f"{int(size) / 1e6:.1f} MB verified" in daemon.cli("verify", "m").stdout
    layer = daemon.json("show", "m")["layers"][3]
    blob = daemon.home / "store" / "blobs" / "sha256" / layer["digest"][7:]
    blob.chmod(0o644)
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 0x10
    blob.write_bytes(data)
    for args in (("verify", "m"), ("verify",)):
        done = daemon.cli(*args, check=False)
        assert done.returncode == 1
        assert layer["digest"][7:19] in done.stdout + done.stderr
    # The damaged model is refused before use, and the sentence names the blob.
    done = daemon.cli("embed", "m", "a cat", check=False)
    assert done.returncode == 1 and layer["digest"][7:19] in done.stderr
    # Importing again heals it.
    daemon.cli("import", str(MODEL_FILE), "--name", "m")
    assert daemon.cli("verify", "m").returncode == 0
    assert daemon.cli("embed", "m", "a cat").returncode == 0


def test_kill_during_import_leaves_the_store_valid(daemon, tmp_path):
    """The import process is killed at random moments; then the store verifies, and the import succeeds."""
    rng = random.Random(7)
    store = daemon.home / "store"
    for attempt in range(25):
        job = subprocess.Popen([str(BIN / "strata-engine"), "import", "--store", str(store), "--name", f"k{attempt % 3}",
                                str(SMOLLM2)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0, 0.25))
        job.send_signal(signal.SIGKILL)
        job.wait()
        result = verify(daemon)
        assert result.get("problems", []) == [], f"attempt {attempt}: {result}"
        json.loads((store / "index.json").read_text())
    daemon.cli("import", str(SMOLLM2), "--name", "smollm2")
    assert verify(daemon).get("problems", []) == []
    # What the killed writers left goes with the garbage.
    daemon.cli("gc", "--now")
    assert not [f for f in (store / "tmp").iterdir()] if (store / "tmp").exists() else True


def test_gc_keeps_what_runs(tmp_path):
    with running(tmp_path / "home", models=((SMOLLM2, "smollm2"),)) as d:
        assert d.cli("run", "smollm2", "Hi", "--max-tokens", "4", "--temperature", "0").stdout
        d.cli("gc", "--now")
        assert verify(d).get("problems", []) == []
        assert d.cli("run", "smollm2", "Hi", "--max-tokens", "4", "--temperature", "0").stdout


def test_two_imports_at_once(daemon):
    jobs = [subprocess.Popen([str(BIN / "strata"), "import", str(SMOLLM2), "--name", f"m{i}"], env=daemon.env,
                             stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for i in range(4)]
    for job in jobs:
        out, _ = job.communicate(timeout=120)
        assert job.returncode == 0, out
    assert len(daemon.json("ls")["models"]) == 4
    assert verify(daemon).get("problems", []) == []


def test_disk_full(tmp_path):
    """A store on a file system with too little room: a clear error, a valid store, and nothing half-written left."""
    home = tmp_path / "home"
    small = home / "store"
    small.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", str(small)], check=True)
    try:
        with running(home, models=((MINILM, "minilm"),)) as d:
            done = d.cli("import", str(SMOLLM2), "--name", "big", check=False)
            assert done.returncode == 1
            assert "space" in done.stderr.lower()
            assert {m["name"] for m in d.json("ls")["models"]} == {"minilm:latest"}
            assert verify(d).get("problems", []) == []
            d.cli("gc", "--now")
            used = sum(f.stat().st_size for f in small.rglob("*") if f.is_file())
            assert used < 50e6
            assert d.cli("embed", "minilm", "a cat").returncode == 0
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_skopeo_reads_the_store(daemon, tmp_path):
    daemon.cli("import", str(MODEL_FILE), "--name", "minilm")
    store = daemon.home / "store"
    raw = subprocess.run(["skopeo", "inspect", "--raw", f"oci:{store}:minilm:latest"], check=True, capture_output=True).stdout
    manifest = json.loads(raw)
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    shown = daemon.json("show", "minilm")
    weights = [layer["digest"] for layer in manifest["layers"]
               if layer["mediaType"] == "application/vnd.cncf.model.weight.v1.raw"]
    assert weights == [layer["digest"] for layer in shown["layers"]]
    assert shown["model"]["embeds"]
    copy = tmp_path / "copy"
    subprocess.run(["skopeo", "copy", f"oci:{store}:minilm:latest", f"oci:{copy}:minilm:latest"], check=True, capture_output=True)
    # And back: what skopeo wrote is imported with the same digests.
    daemon.cli("import", f"oci:{copy}", "--name", "again")
    again = daemon.json("show", "again")
    assert again["model"]["digest"] == shown["model"]["digest"]
    assert daemon.cli("embed", "again", "a cat").returncode == 0


def test_names(daemon):
    for bad in ("../up", "a b", "UPPER", "a\tb", "a:", ":b", "a" * 300, "a//b", "\x1b[31m"):
        done = daemon.cli("import", str(MODEL_FILE), "--name", bad, check=False)
        assert done.returncode != 0 and "\x1b" not in done.stderr, bad
    daemon.cli("import", str(MODEL_FILE), "--name", "team/minilm:v1.2")
    assert daemon.json("ls")["models"][0]["name"] == "team/minilm:v1.2"
    assert "no model" in daemon.cli("show", "nonesuch", check=False).stderr.lower()


def tiny(path: pathlib.Path, **changes) -> pathlib.Path:
    """A tiny valid-looking llama GGUF, for hostile variations."""
    w = gguf.GGUFWriter(str(path), "llama")
    w.add_block_count(changes.get("blocks", 1))
    w.add_context_length(32)
    w.add_embedding_length(32)
    w.add_feed_forward_length(32)
    w.add_head_count(1)
    w.add_tokenizer_model("gpt2")
    w.add_token_list(["a", "b", "c"])
    w.add_bos_token_id(changes.get("bos", 1))
    for name in ("token_embd.weight", "blk.0.attn_q.weight", "output_norm.weight"):
        if name != changes.get("without"):
            w.add_tensor(name, np.zeros((4, 32), dtype=np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "header-only", "no-blocks", "token-id", "block-beyond", "folder",
                                  "fifo", "device", "missing"])
def test_bad_files_are_refused_by_name_and_leave_nothing(daemon, tmp_path, kind):
    path = tmp_path / "bad.gguf"
    expect = "bad.gguf"
    if kind == "truncated":
        path.write_bytes(MODEL_FILE.read_bytes()[:1_000_000])
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("This is not a model.\n" * 50)
    elif kind == "header-only":
        path.write_bytes(b"GGUF")
    elif kind == "no-blocks":
        tiny(path, blocks=0)
        expect = "block_count"
    elif kind == "token-id":
        tiny(path, bos=77)
        expect = "bos_token_id"
    elif kind == "block-beyond":
        tiny(path, blocks=5)
        expect = "blk"
    elif kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    done = daemon.cli("import", str(path), "--name", "bad", check=False, timeout=60)
    assert done.returncode == 1
    assert expect in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2
    assert daemon.json("ls")["models"] == []
    assert blobs(daemon) == {}


def test_random_damage_never_hurts(daemon, tmp_path):
    """60 files with seeded damage in the header: refused with a sentence, or imported; the daemon lives."""
    rng = random.Random(11)
    good = MODEL_FILE.read_bytes()[:400_000]
    for i in range(60):
        data = bytearray(good)
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(min(len(data), 3000))] = rng.randrange(256)
        path = tmp_path / "damaged.gguf"
        path.write_bytes(data)
        done = daemon.cli("import", str(path), "--name", f"d{i}", check=False, timeout=60)
        assert done.returncode == 1 and "damaged.gguf" in done.stderr, (i, done.stderr)
    assert daemon.process.poll() is None
    assert verify(daemon).get("problems", []) == []


def test_hostile_layout(daemon, tmp_path):
    """Another's OCI layout: digests that are paths, manifests of gigabytes, wrong types."""
    layout = tmp_path / "layout"
    (layout / "blobs" / "sha256").mkdir(parents=True)
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')

    def index(**entry):
        (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [
            {"mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 2, **entry}]}))

    def refused(word=""):
        done = daemon.cli("import", f"oci:{layout}", "--name", "hostile", check=False, timeout=60)
        assert done.returncode == 1 and word in done.stderr, done.stderr
        assert daemon.json("ls")["models"] == []
    index(digest="sha256:../../../../etc/passwd")
    refused("digest")
    index(digest="sha256:" + "a" * 64)
    refused()
    big = layout / "blobs" / "sha256" / ("b" * 64)
    with open(big, "wb") as f:
        f.truncate(4 << 30)
    index(digest="sha256:" + "b" * 64, size=4 << 30)
    refused("at most")
    (layout / "index.json").write_text('{"manifests": {"a": 1}}')
    refused()
    (layout / "index.json").write_text("[" * 100_000)
    refused()
