"""Engines crash, daemons are killed, clients leave: nobody else notices, and everything comes back."""
import os
import signal
import subprocess
import threading
import time

import httpx
import pytest

from conftest import BIN, SMOLLM2, Daemon, alive, chat, events, running, wait_until

NAME = "smollm2:latest"


@pytest.fixture
def served(tmp_path):
    with running(tmp_path / "home", models=((SMOLLM2, "smollm2"),)) as d:
        yield d


def ask(d, **options) -> httpx.Response:
    return httpx.post(f"{d.url}/v1/chat/completions", json=chat("What is the capital of France?", **options), timeout=120)


def engine_pid(d) -> int:
    return int((d.deployment(NAME) or {}).get("enginePid", 0))


def generated_tokens(daemon) -> int:
    return int(daemon.deployment(NAME)["engine"].get("generatedTokensTotal", 0))


def busy_slots(d) -> int:
    engine = (d.deployment(NAME) or {}).get("engine", {})
    return sum(1 for s in engine.get("slots", []) if s.get("busy"))


def test_loads_on_first_use_and_not_before(served):
    assert engine_pid(served) == 0
    assert httpx.get(f"{served.url}/v1/models").status_code == 200
    assert httpx.get(f"{served.url}/metrics").status_code == 200
    assert engine_pid(served) == 0
    assert ask(served).status_code == 200
    assert alive(engine_pid(served))


def test_many_first_requests_load_once(served):
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(ask(served, max_tokens=4).status_code)) for _ in range(12)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(120)
    assert answers == [200] * 12
    assert served.deployment(NAME).get("restarts", 0) == 0


def test_abort_in_the_engine_ends_the_engine_not_the_daemon(served):
    """SIGABRT is what a failed GGML_ASSERT sends."""
    ask(served)
    first = engine_pid(served)
    with httpx.stream("POST", f"{served.url}/v1/chat/completions", timeout=60,
                      json=chat("Tell me a long story.", max_tokens=2000, stream=True)) as r:
        got = []
        for event in events(r):
            got.append(event)
            if len(got) == 5:
                os.kill(first, signal.SIGABRT)
    # The stream that was under way ends with an error that says what happened, not with a cut connection.
    assert "error" in got[-1] and "engine" in got[-1]["error"]["message"]
    assert served.process.poll() is None
    # The daemon says what happened, and the model comes back by itself.
    wait_until(lambda: served.deployment(NAME)["state"] == "STATE_READY" and engine_pid(served) != first, 60, "the restart")
    assert served.deployment(NAME)["restarts"] == 1
    assert "6" in served.deployment(NAME)["lastError"]
    assert ask(served).status_code == 200
    assert "restart" in served.cli("ps").stdout.lower() or "1" in served.cli("ps").stdout


def test_waiting_requests_get_a_clear_error_when_the_engine_dies(served):
    ask(served)
    answers = []

    def wait_in_line():
        answers.append(ask(served, max_tokens=400))
    threads = [threading.Thread(target=wait_in_line) for _ in range(10)]
    for t in threads:
        t.start()
    wait_until(lambda: busy_slots(served) > 0, 30, "a busy slot")
    os.kill(engine_pid(served), signal.SIGKILL)
    for t in threads:
        t.join(120)
    assert len(answers) == 10
    for r in answers:
        assert r.status_code == 200 or (r.status_code == 503 and "engine" in r.json()["error"]["message"]), r.text


def test_engine_that_dies_again_and_again_is_backed_off(served):
    ask(served)
    for _ in range(3):
        pid = wait_until(lambda: engine_pid(served), 60, "an engine")
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: engine_pid(served) not in (0, pid), 60, "the next engine")
    assert served.deployment(NAME)["restarts"] >= 3
    wait_until(lambda: served.deployment(NAME)["state"] == "STATE_READY", 60)
    assert ask(served).status_code == 200


def test_disconnect_frees_the_slot(served):
    ask(served)
    before = generated_tokens(served)
    with httpx.stream("POST", f"{served.url}/v1/chat/completions", timeout=60,
                      json=chat("Tell me a long story.", max_tokens=2000, ignore_eos=True, stream=True)) as r:
        stream = events(r)  # kept: a generator that is collected closes the connection
        next(stream)
        assert busy_slots(served) == 1
    wait_until(lambda: busy_slots(served) == 0, 60, "a free slot after the client left")
    assert generated_tokens(served) - before < 2000


def test_disconnect_before_the_first_token_frees_the_slot(served):
    """The client leaves while its long prompt is being processed."""
    ask(served)
    before = generated_tokens(served)
    prompt = " ".join(f"item {i}" for i in range(600))
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{served.url}/v1/chat/completions", json=chat(prompt, max_tokens=2000, stream=True), timeout=0.3)
    wait_until(lambda: busy_slots(served) == 0, 60, "a free slot after the client left")
    assert generated_tokens(served) == before


def test_a_restarted_daemon_adopts_its_engines(served):
    ask(served)
    pid = engine_pid(served)
    served.stop(signal.SIGKILL)
    assert alive(pid)
    served.start()
    wait_until(lambda: engine_pid(served) == pid, 20, "the adoption")
    assert ask(served).status_code == 200
    assert engine_pid(served) == pid


def test_state_survives_a_clean_restart(served):
    ask(served)
    pid = engine_pid(served)
    assert served.stop() == 0
    assert not alive(pid)
    served.start()
    assert {m["name"] for m in served.json("ls")["models"]} == {NAME}
    assert ask(served).status_code == 200


def test_clean_shutdown_lets_a_running_stream_end(served):
    ask(served)
    result = {}

    def stream():
        with httpx.stream("POST", f"{served.url}/v1/chat/completions", timeout=60,
                          json=chat("Tell me a long story.", max_tokens=150, stream=True)) as r:
            result["events"] = list(events(r))
    thread = threading.Thread(target=stream)
    thread.start()
    wait_until(lambda: busy_slots(served) == 1, 30)
    pid = engine_pid(served)
    assert served.stop(signal.SIGTERM, timeout_s=60) == 0
    thread.join(60)
    assert result["events"][-1]["choices"][0]["finish_reason"] in ("length", "stop")
    assert not alive(pid)


def test_second_daemon_on_the_same_home_is_refused(served):
    second = Daemon(served.home)
    with open(served.home / "second.out", "wb") as log:
        done = subprocess.run([str(BIN / "stratad"), "--home", str(served.home), "--listen", f"127.0.0.1:{second.port}"],
                              stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=30)
    assert done.returncode != 0
    assert str(served.process.pid) in (served.home / "second.out").read_text()
    assert ask(served).status_code == 200


def test_listening_beyond_loopback_is_refused(tmp_path):
    for address in ("0.0.0.0:7999", "[::]:7999", "10.0.0.1:7999"):
        done = subprocess.run([str(BIN / "stratad"), "--home", str(tmp_path / "home"), "--listen", address],
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
        assert done.returncode != 0
        assert "loopback" in done.stderr


def test_idle_models_are_unloaded(tmp_path):
    with running(tmp_path / "home", "--idle-timeout", "2s", models=((SMOLLM2, "smollm2"),)) as d:
        ask(d)
        pid = engine_pid(d)
        wait_until(lambda: not alive(pid), 30, "the unloading")
        assert ask(d).status_code == 200


def test_stop_unloads_and_rm_frees(served):
    ask(served)
    pid = engine_pid(served)
    refused = served.cli("rm", "smollm2", check=False)
    assert refused.returncode == 1 and "stop" in refused.stderr
    served.cli("stop", "smollm2")
    wait_until(lambda: not alive(pid), 30)
    served.cli("rm", "smollm2")
    assert served.json("ls")["models"] == []
    freed = served.json("gc", "--now")
    assert int(freed["freedBytes"]) > 90e6
    assert not list((served.home / "store" / "blobs" / "sha256").iterdir())


def test_threads_do_not_grow_with_waiting_requests(served):
    """200 requests at once on a real engine: all answered, threads of engine and daemon bounded."""
    ask(served)
    pid = engine_pid(served)

    def threads(p):
        return len(os.listdir(f"/proc/{p}/task"))
    before = threads(pid), threads(served.process.pid)
    answers, peak = [], [0, 0]
    limits = httpx.Limits(max_connections=300)
    with httpx.Client(limits=limits, timeout=280) as client:
        def one(i):
            answers.append(client.post(f"{served.url}/v1/completions", json={
                "model": "smollm2", "prompt": f"{i} and", "max_tokens": 2, "temperature": 0}).status_code)
        workers = [threading.Thread(target=one, args=(i,)) for i in range(200)]
        for w in workers:
            w.start()
        while any(w.is_alive() for w in workers):
            peak = [max(peak[0], threads(pid)), max(peak[1], threads(served.process.pid))]
            time.sleep(0.02)
    assert answers == [200] * 200
    assert peak[0] <= before[0] + 16 and peak[1] <= before[1] + 16
