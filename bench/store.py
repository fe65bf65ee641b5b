#!/usr/bin/env python3
"""Import beside one SHA-256 pass of OpenSSL over the same file, and the load of an imported model beside llama.cpp's load of
the original file."""
import json
import shutil
import statistics
import subprocess
import time

import gguf
import numpy as np

from common import BIN, MODELS, Report, options, progress, temporary_home

GIGABYTE_MODEL = MODELS / "synthetic-1g.gguf"


def synthetic_model() -> None:
    """A llama of 1 GB with random F16 weights: what an import does depends on the bytes only in their number."""
    if GIGABYTE_MODEL.exists():
        return
    progress("writing a synthetic model of 1 GB")
    part = GIGABYTE_MODEL.with_suffix(".part")
    rng = np.random.default_rng(1)
    width, blocks = 2048, 16
    w = gguf.GGUFWriter(str(part), "llama")
    w.add_block_count(blocks)
    w.add_context_length(2048)
    w.add_embedding_length(width)
    w.add_feed_forward_length(3 * width)
    w.add_head_count(16)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_tokenizer_model("gpt2")
    w.add_token_list([f"t{i}" for i in range(32000)])

    def tensor(name, rows, columns):
        w.add_tensor(name, rng.integers(0, 1 << 14, size=(rows, columns), dtype=np.uint16).view(np.float16))
    tensor("token_embd.weight", 32000, width)
    for b in range(blocks):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensor(f"blk.{b}.{name}.weight", width, width)
        for name in ("ffn_gate", "ffn_up"):
            tensor(f"blk.{b}.{name}.weight", 3 * width, width)
        tensor(f"blk.{b}.ffn_down.weight", width, 3 * width)
        for name in ("attn_norm", "ffn_norm"):
            w.add_tensor(f"blk.{b}.{name}.weight", np.ones(width, dtype=np.float32))
    w.add_tensor("output_norm.weight", np.ones(width, dtype=np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    part.rename(GIGABYTE_MODEL)


def seconds(*command) -> float:
    begin = time.perf_counter()
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def main() -> None:
    args = options(__doc__, rounds=7)
    report = Report("store", args.only)
    synthetic_model()
    size_mb = GIGABYTE_MODEL.stat().st_size / 1e6
    with temporary_home() as home:
        home.mkdir(parents=True)

        def import_rate() -> float:
            shutil.rmtree(home / "store", ignore_errors=True)
            return size_mb / seconds(BIN / "strata-engine", "import", "--store", home / "store", "--name", "m", GIGABYTE_MODEL)

        report.pair("import, against one SHA-256 pass", "MB/s", import_rate,
                    lambda: size_mb / seconds("openssl", "dgst", "-sha256", GIGABYTE_MODEL), args.rounds, at_least=0.7)
    for name in ("smollm2-135m-instruct-q4_1", "smollm2-135m-instruct-q4_0"):
        with temporary_home() as home:
            subprocess.run([str(BIN / "strata-engine"), "import", "--store", str(home / "store"), "--name", "m",
                            str(MODELS / f"{name}.gguf")], check=True, stdout=subprocess.DEVNULL)
            done = subprocess.run([str(BIN / "strata-bench-load"), str(home / "store"), "m", str(MODELS / f"{name}.gguf"), "21"],
                                  check=True, capture_output=True, text=True)
        samples = json.loads(done.stdout)
        ours, peer = iter(samples["ours_ms"]), iter(samples["peer_ms"])
        report.pair(f"load {name[-4:]}, store against file", "ms", lambda: next(ours), lambda: next(peer),
                    len(samples["ours_ms"]), at_most=1.0, warm_up=0)
        report.single(f"load {name[-4:]}, anonymous memory beyond llama.cpp's", "MB",
                      (statistics.median(samples["ours_anonymous"]) - statistics.median(samples["peer_anonymous"])) / 1e6,
                      at_most=2)
    report.finish()


if __name__ == "__main__":
    main()
