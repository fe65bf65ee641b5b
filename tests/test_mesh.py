"""A model over a mesh of executors gives what it gives on one machine: stock llama.cpp programs with libggml-strata.so, beside
the same programs without. Every comparison proves by the executors' logs that they did the work."""
import concurrent.futures
import functools
import itertools
import json
import os
import re
import signal
import subprocess
import threading

import httpx
import pytest

import synthetic_models
from conftest import (BIN, MINILM, ON_MESH, ROOT, SMOLLM2, SMOLLM2_BY_TYPE, complete, completion_args, events, executors,
                      llama_server)

PROMPT = "Once upon a time, in a land far away,"
LONG_PROMPT = " ".join(f"{n} is {'odd' if n % 2 else 'even'} and {n + 1} is {'even' if n % 2 else 'odd'}." for n in range(45))


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    with executors(tmp_path_factory.mktemp("mesh"), 4) as started:
        yield started


@pytest.fixture(scope="module")
def two_threads(tmp_path_factory):
    with executors(tmp_path_factory.mktemp("two-threads"), 4, threads=2) as started:
        yield started


@functools.cache
def local(peers, model, prompt, tokens, *options):
    return complete(completion_args(peers, model, prompt, tokens, *options))


def assert_equal_to_local(peers, mesh, count, model, prompt=PROMPT, tokens=48, options=(), **variables):
    expected = local(peers, model, prompt, tokens, *options)
    assert len(expected) > len(prompt) + 20
    with mesh.working(range(count)):
        args = completion_args(peers, model, prompt, tokens, *options, *ON_MESH)
        assert complete(args, mesh.env(count, **variables)) == expected


@pytest.mark.parametrize("type", SMOLLM2_BY_TYPE)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_greedy_text(peers, mesh, type, count):
    assert_equal_to_local(peers, mesh, count, SMOLLM2_BY_TYPE[type])


@pytest.mark.parametrize("type", SMOLLM2_BY_TYPE)
def test_eight_cuts(peers, mesh, type):
    assert_equal_to_local(peers, mesh, 2, SMOLLM2_BY_TYPE[type], cuts=8)


def test_uneven_split(peers, mesh):
    assert_equal_to_local(peers, mesh, 3, SMOLLM2, split="5,1,2")


@pytest.mark.parametrize("type", SMOLLM2_BY_TYPE)
@pytest.mark.parametrize("seed", [1, 2])
def test_every_node_on_a_random_executor(peers, mesh, type, seed):
    assert_equal_to_local(peers, mesh, 3, SMOLLM2_BY_TYPE[type], tokens=12, scatter=seed)


@pytest.mark.parametrize("type", SMOLLM2_BY_TYPE)
@pytest.mark.parametrize("seed", [1, 2])
def test_layers_move_every_few_steps(peers, mesh, type, seed):
    assert_equal_to_local(peers, mesh, 3, SMOLLM2_BY_TYPE[type], rebind=seed)


@pytest.mark.parametrize("attention", ["on", "off"])
@pytest.mark.parametrize("layout", [{"count": 1}, {"count": 2}, {"count": 4}, {"count": 2, "cuts": 8},
                                    {"count": 3, "rebind": 3}], ids=str)
def test_past_512_tokens_of_kv(peers, mesh, attention, layout):
    assert_equal_to_local(peers, mesh, prompt=LONG_PROMPT, tokens=32, model=SMOLLM2_BY_TYPE["q4_0"],
                          options=("-c", "2048", "-fa", attention), **layout)


def test_small_micro_batches(peers, mesh):
    assert_equal_to_local(peers, mesh, 2, SMOLLM2_BY_TYPE["q4_0"], LONG_PROMPT, 16, options=("-c", "2048", "-ub", "64"))


@pytest.mark.parametrize("cache", [(), ("-ctk", "q8_0"), ("-ctk", "q4_0", "-ctv", "q8_0", "-fa", "on")], ids=" ".join)
def test_context_shift(peers, mesh, cache):
    """A context of 256 cells, of which the older half is given up again and again."""
    assert_equal_to_local(peers, mesh, 2, SMOLLM2_BY_TYPE["q4_0"], tokens=400,
                          options=("-c", "256", "--context-shift", "--keep", "4", *cache))


@pytest.mark.parametrize("type", SMOLLM2_BY_TYPE)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_two_threads(peers, two_threads, type, count):
    assert_equal_to_local(peers, two_threads, count, SMOLLM2_BY_TYPE[type], tokens=24, options=("-t", "2"))


# ------------------------------------------------------------------------------------------------------------ other models

@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    synthetic_models.write_all(SMOLLM2, folder)
    return folder


# By size, a fourth executor would get nothing of such small blocks before so large a tail.
LAYOUTS = [{"count": 1}, {"count": 2}, {"count": 4, "cuts": 3}, {"count": 2, "cuts": 4}, {"count": 3, "scatter": 3},
           {"count": 3, "rebind": 5}]


@pytest.mark.parametrize("kind", synthetic_models.KINDS)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_other_architectures(peers, mesh, synthetic, kind, layout):
    """Text past the sliding window of 32 tokens."""
    assert_equal_to_local(peers, mesh, model=synthetic / f"{kind}.gguf", tokens=64, **layout)


@pytest.mark.parametrize("kind", synthetic_models.KINDS)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_other_architectures_past_512_tokens(peers, two_threads, synthetic, kind, layout):
    assert_equal_to_local(peers, two_threads, model=synthetic / f"{kind}.gguf", prompt=LONG_PROMPT, tokens=24,
                          options=("-c", "2048", "-t", "2"), **layout)


def embed(url, texts):
    answer = httpx.post(f"{url}/v1/embeddings", json={"input": texts}, timeout=60)
    assert answer.status_code == 200, answer.text
    return [d["embedding"] for d in answer.json()["data"]]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_embeddings(llama, mesh, layout):
    texts = ["A man is eating food.", "A cheetah is running behind its prey.", "The stock market fell sharply today. " * 12]
    with llama_server(llama, MINILM, "--embeddings", "-t", "1") as url:
        expected = embed(url, texts)
    with mesh.working(range(layout["count"])):
        with llama_server(llama, MINILM, "--embeddings", "-t", "1", "-fit", "off", *ON_MESH, env=mesh.env(**layout)) as url:
            got = embed(url, texts)
    assert max(abs(a - b) for g, e in zip(got, expected, strict=True) for a, b in zip(g, e, strict=True)) < 1e-5


@pytest.mark.parametrize("kind", ["decoder", *synthetic_models.KINDS])
def test_perplexity(peers, mesh, synthetic, kind):
    model = SMOLLM2 if kind == "decoder" else synthetic / f"{kind}.gguf"

    def perplexity(*options, env=None):
        done = subprocess.run([str(peers / "llama-perplexity"), "-m", str(model), "-f", str(ROOT / "docs" / "cli.md"), "-c",
                               "512", "--chunks", "3", "-t", "1", "-fit", "off", *options], env=env,
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=200)
        found = re.search(r"Final estimate: PPL = ([\d.]+)", done.stdout + done.stderr)
        assert done.returncode == 0 and found, done.stderr[-3000:]
        return float(found[1])
    expected = perplexity()
    for layout in LAYOUTS[:3]:
        with mesh.working(range(layout["count"])):
            assert abs(perplexity(*ON_MESH, env=mesh.env(**layout)) - expected) < 1e-4


# --------------------------------------------------------------------------------------------------- several drivers, losses

def test_two_drivers_on_the_same_executors(peers, mesh):
    prompts = [PROMPT, "The capital of France is"]
    expected = [local(peers, SMOLLM2, prompt, 96) for prompt in prompts]
    got = [None, None]

    def one(i):
        got[i] = complete(completion_args(peers, SMOLLM2, prompts[i], 96, *ON_MESH), mesh.env(2))
    with mesh.working(range(2), sessions=2):
        threads = [threading.Thread(target=one, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert got == expected


def lose_executor(peers, three, lost: int, tokens: int, **variables):
    """Runs a generation over three executors and kills one in the middle; the driver's exit code, text and stderr."""
    args = completion_args(peers, SMOLLM2, PROMPT, tokens, *ON_MESH)
    with subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env=three.env(**variables)) as driver:
        errors = []
        reader = threading.Thread(target=lambda: errors.append(driver.stderr.read()))
        reader.start()
        hung = threading.Timer(120, driver.kill)
        hung.start()
        text = b""
        while len(text) < len(PROMPT) + 60 and (piece := os.read(driver.stdout.fileno(), 64)):
            text += piece
        assert driver.poll() is None, "the generation ended too early to lose anything"
        three.processes[lost].send_signal(signal.SIGKILL)
        text += driver.stdout.read()
        code = driver.wait()
        reader.join()
        hung.cancel()
    return code, text.decode(errors="replace"), errors[0].decode(errors="replace")


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_lost_executor_is_made_up_for(peers, tmp_path, lost):
    expected = local(peers, SMOLLM2, PROMPT, 200)
    with executors(tmp_path, 3) as three, three.working([i for i in range(3) if i != lost]):
        code, text, errors = lose_executor(peers, three, lost, 200, on_loss="rebind")
        assert code == 0 and text == expected, errors[-3000:]


def test_a_lost_executor_is_a_clean_failure(peers, tmp_path):
    expected = local(peers, SMOLLM2, PROMPT, 200)
    with executors(tmp_path, 3) as three:
        code, text, errors = lose_executor(peers, three, 1, 200)
        assert code > 0, f"ended with {code}"
        assert "strata mesh: " in errors and three.addresses[1] in errors
        # libllama can't be told that a read failed, only that the next graph did: one token is sampled from zeros.
        assert len(text.strip()) < len(expected.strip()) - 100 and expected.startswith(text.strip()[:-20])
        # The others forget that driver and serve the next one.
        with three.working([0, 2]):
            pass_on = {**three.env(), "STRATA_MESH": f"{three.addresses[0]},{three.addresses[2]}"}
            assert complete(completion_args(peers, SMOLLM2, PROMPT, 200, *ON_MESH), pass_on) == expected


def test_an_executor_that_is_not_there(peers, mesh):
    args = completion_args(peers, SMOLLM2, PROMPT, 4, *ON_MESH)
    env = {**mesh.env(1), "STRATA_MESH": f"{mesh.addresses[0]},127.0.0.1:1"}
    done = subprocess.run(args, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert done.returncode > 0 and "127.0.0.1:1" in done.stderr


# ------------------------------------------------------------------------------------------------- strata run --on, the daemon

QUESTION = {"model": "smollm2", "temperature": 0, "max_tokens": 200, "ignore_eos": True,
            "messages": [{"role": "user", "content": "Write a story about the sea."}]}


def answer(daemon, after=lambda text: None) -> str:
    """The streamed answer to QUESTION; after(text so far) is called for each piece."""
    text = ""
    with httpx.stream("POST", f"{daemon.url}/v1/chat/completions", json={**QUESTION, "stream": True}, timeout=120) as r:
        assert r.status_code == 200, r.read()
        for event in events(r):
            assert "error" not in event, event
            text += event["choices"][0]["delta"].get("content") or ""
            after(text)
    return text


def test_a_deployment_on_executors(daemon, tmp_path):
    daemon.cli("import", str(SMOLLM2), "--name", "smollm2")
    expected = answer(daemon)
    with executors(tmp_path / "executors", 3) as three:
        said = daemon.cli("run", "smollm2", "--on", ",".join(three.addresses), "--temperature", "0", "--max-tokens", "16",
                          QUESTION["messages"][0]["content"]).stdout.strip()
        assert said and expected.startswith(said)
        parts = daemon.deployment("smollm2:latest")["engine"]["parts"]
        assert [part["executor"] for part in parts] == three.addresses
        assert sum(int(part["weightsBytes"]) for part in parts) > 90_000_000
        assert all(int(part["graphs"]) > 0 for part in parts)
        table = daemon.cli("ps").stdout
        assert "EXECUTOR" in table and all(address in table for address in three.addresses)

        # One is lost in the middle of a sentence.
        def kill(text):
            if len(text) > 100 and three.processes[1].poll() is None:
                three.processes[1].kill()
                three.processes[1].wait()
        assert answer(daemon, kill) == expected
        left = {part["executor"] for part in daemon.deployment("smollm2:latest")["engine"]["parts"] if not part.get("lost")}
        assert left == {three.addresses[0], three.addresses[2]}
        assert answer(daemon) == expected


def test_lanes(daemon, tmp_path):
    """Two lanes over two executors, which hold the weights once; each conversation goes back to its lane."""
    daemon.cli("import", str(SMOLLM2), "--name", "smollm2")
    questions = ["Write a story about the sea. " + "Make it long and sad. " * 8, "Tell me of a mountain. " + "Be brief. " * 16]
    # Equal bits take equal batches: nothing from a cache, and prompts of one micro-batch.
    expected = [chat(daemon, [question], cache=False)["text"] for question in questions]
    with executors(tmp_path / "executors", 2) as two:
        daemon.cli("run", "smollm2", "--on", ",".join(two.addresses), "--max-tokens", "4", "hello")
        options = daemon.deployment("smollm2:latest")["engine"]["options"]
        assert options["lanes"] == 2 and options["slots"] == 4
        with concurrent.futures.ThreadPoolExecutor() as pool:
            got = list(pool.map(lambda question: chat(daemon, [question], cache=False), questions))
        assert [answer["text"] for answer in got] == expected
        assert all(log.read_text().count(" came") == 2 for log in two.logs), "each lane has a session at each executor"
        for question, first in zip(questions, got):
            again = chat(daemon, [question, first["text"], "Go on."])
            assert again["cached"] > first["prompt"], "the conversation went to a lane that does not know it"


def chat(daemon, turns: list[str], cache=True) -> dict:
    """Greedy: text, and tokens of the prompt and of what of it was cached."""
    messages = [{"role": role, "content": turn} for role, turn in zip(itertools.cycle(("user", "assistant")), turns)]
    body = {"model": "smollm2", "temperature": 0, "max_tokens": 64, "messages": messages, "cache_prompt": cache}
    answer = httpx.post(f"{daemon.url}/v1/chat/completions", json=body, timeout=120).json()
    return {"text": answer["choices"][0]["message"]["content"], "prompt": answer["usage"]["prompt_tokens"],
            "cached": answer["usage"]["prompt_tokens_details"]["cached_tokens"]}


def test_a_loss_that_is_not_made_up_for(daemon, tmp_path):
    """The stream ends with an error that names the executor; not one token is made from what was lost."""
    daemon.cli("import", str(SMOLLM2), "--name", "smollm2")
    expected = answer(daemon)
    with executors(tmp_path / "executors", 2) as two:
        daemon.cli("run", "smollm2", "--on", ",".join(two.addresses), "--on-loss", "fail", "--max-tokens", "4", "hello")
        text, error = "", None
        with httpx.stream("POST", f"{daemon.url}/v1/chat/completions", json={**QUESTION, "stream": True}, timeout=60) as r:
            for event in events(r):
                error = event.get("error")
                text += "" if error else event["choices"][0]["delta"].get("content") or ""
                if len(text) > 100 and two.processes[1].poll() is None:
                    two.processes[1].kill()
                    two.processes[1].wait()
        assert expected.startswith(text) and len(text) < len(expected)
        assert error and two.addresses[1] in error["message"]


def bind(daemon, layers: str, to: str, check=True):
    return subprocess.run([str(BIN / "strata-engine"), "bind", "--socket", str(daemon.engine_socket()), "--layers", layers,
                           "--to", to], check=check, capture_output=True, text=True, timeout=90)


def test_bind_moves_layers(daemon, tmp_path):
    """Ten layers go to an executor that the model was not on, and back, while text streams."""
    daemon.cli("import", str(SMOLLM2), "--name", "smollm2")
    expected = answer(daemon)
    with executors(tmp_path / "executors", 3) as three:
        daemon.cli("run", "smollm2", "--on", ",".join(three.addresses[:2]), "--max-tokens", "4", "hello")
        moves = [("10-19", 2), ("10-19", 0), ("30", 2)]

        def move(text):
            if moves and len(text) > 100 * (4 - len(moves)):
                layers, to = moves.pop(0)
                parts = json.loads(bind(daemon, layers, three.addresses[to]).stdout)["parts"]
                assert any(part["executor"] == three.addresses[to] for part in parts)
        assert answer(daemon, move) == expected
        assert not moves
        parts = daemon.deployment("smollm2:latest")["engine"]["parts"]
        assert [(part["executor"], int(part.get("firstLayer", 0)), int(part["lastLayer"])) for part in parts] == [
            (three.addresses[0], 0, 19), (three.addresses[1], 20, 29), (three.addresses[2], 30, 30)]
        done = bind(daemon, "31-40", three.addresses[0], check=False)
        assert done.returncode == 1 and "no layers 31 to 40, only 0 to 30" in done.stderr
        done = bind(daemon, "1-2", "127.0.0.1:1", check=False)
        assert done.returncode == 1 and "127.0.0.1:1" in done.stderr
        assert answer(daemon) == expected


def test_bind_after_a_loss(daemon, tmp_path):
    """Its layers are bound to an executor that was not there before; the journal is done again; the text is the same."""
    daemon.cli("import", str(SMOLLM2), "--name", "smollm2")
    expected = answer(daemon)
    with executors(tmp_path / "executors", 2) as two, executors(tmp_path / "heir", 1) as heir:
        daemon.cli("run", "smollm2", "--on", ",".join(two.addresses), "--on-loss", "wait", "--max-tokens", "4", "hello")
        parts = daemon.deployment("smollm2:latest")["engine"]["parts"]
        lost = f"{parts[1]['firstLayer']}-{parts[1]['lastLayer']}"
        commanded = threading.Timer(1, bind, (daemon, lost, heir.addresses[0]))

        def kill(text):
            if len(text) > 100 and two.processes[1].poll() is None:
                two.processes[1].kill()
                two.processes[1].wait()
                commanded.start()
        assert answer(daemon, kill) == expected
        commanded.join()
        left = [part["executor"] for part in daemon.deployment("smollm2:latest")["engine"]["parts"]]
        assert left == [two.addresses[0], heir.addresses[0]]
        assert answer(daemon) == expected


def test_what_is_wrong_with_on_is_said(daemon, mesh):
    daemon.cli("import", str(SMOLLM2), "--name", "smollm2")
    there = mesh.addresses[0]
    for on, said in (("127.0.0.1:1", "127.0.0.1:1"), ("127.0.0.1:99999", "port"), (":7430", "host is missing"),
                     (f"{there}/1", "there is no device 1 here, only 1"), (f"{there}/x", "the number of a device")):
        done = daemon.cli("run", "smollm2", "--on", on, "hello", check=False)
        assert done.returncode == 1 and said in done.stderr, done.stderr
    assert daemon.cli("run", "smollm2", "--max-tokens", "4", "hello").stdout.strip(), "the options were not kept"
