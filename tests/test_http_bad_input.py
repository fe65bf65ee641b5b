"""Hostile and broken HTTP clients: the right status with an error body of the API's shape, and nobody else is disturbed."""
import contextlib
import json
import pathlib
import re
import socket
import threading
import time

import httpx
import pytest

from conftest import chat, events


@pytest.fixture
def undisturbed(node):
    """A stream of another client that is open during the whole test and must end complete."""
    result = {}

    def stream():
        with httpx.stream("POST", f"{node.url}/v1/chat/completions", timeout=120,
                          json=chat("Tell me a long story.", max_tokens=120, stream=True)) as r:
            result["status"] = r.status_code
            result["finish"] = [e["choices"][0]["finish_reason"] for e in events(r) if e["choices"]][-1]

    thread = threading.Thread(target=stream)
    thread.start()
    yield
    thread.join(120)
    assert result == {"status": 200, "finish": "length"} or result == {"status": 200, "finish": "stop"}


def raw(node, data: bytes) -> bytes:
    """Sends bytes as they are and returns the answer, or what comes of it before the server closes."""
    with socket.create_connection(("127.0.0.1", node.port), timeout=60) as s:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            s.sendall(data)
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while part := s.recv(65536):
                received += part
                head, end, body = received.partition(b"\r\n\r\n")
                length = re.search(rb"\r\ncontent-length: (\d+)", head.lower())
                if end and length and len(body) >= int(length[1]):
                    break
        return received


def error_of(response: httpx.Response) -> str:
    return response.json()["error"]["message"]


@pytest.mark.usefixtures("undisturbed")
class TestHttp:
    @pytest.mark.parametrize("body", [b"{", b"", b"[]", b"nonsense", b'{"model": 5}', b'{"model": "smollm2"', b"\x00\xff\xfe",
                                      b'"' + b"a" * 1000, b"[" * 100_000, b'{"a":' * 100_000])
    def test_malformed_json(self, node, body):
        r = httpx.post(f"{node.url}/v1/chat/completions", content=body, headers={"content-type": "application/json"})
        assert r.status_code == 400
        assert error_of(r)

    def test_deeply_nested_valid_json(self, node):
        nested = "[" * 50_000 + "]" * 50_000
        r = httpx.post(f"{node.url}/v1/chat/completions", timeout=30,
                       content=f'{{"model":"smollm2","messages":[{{"role":"user","content":"Hi"}}],"x":{nested}}}')
        assert r.status_code == 400

    def test_unknown_model(self, node):
        r = httpx.post(f"{node.url}/v1/chat/completions", json=chat("Hi", model="nonesuch"))
        assert r.status_code == 404 and "nonesuch" in error_of(r)

    @pytest.mark.parametrize("name", ["../../etc/passwd", "a" * 5000, "bad\nname", "\x1b[31mred", "sha256:../x", "ü"])
    def test_hostile_model_name(self, node, name):
        r = httpx.post(f"{node.url}/v1/chat/completions", json=chat("Hi", model=name))
        assert r.status_code in (400, 404)
        assert "\x1b" not in r.text and len(r.text) < 3000

    @pytest.mark.parametrize("bad", [
        {"max_tokens": -5}, {"max_tokens": 10**18, "stop": ["\n"]}, {"temperature": -1}, {"temperature": 1e308}, {"top_k": -7},
        {"top_p": 50}, {"n": 100000}, {"n": 0}, {"seed": -99}, {"logprobs": True, "top_logprobs": 100000},
        {"repeat_last_n": -100}, {"n_discard": -100}, {"n_keep": -100}, {"id_slot": 9999}, {"id_slot": -9999},
        {"logit_bias": {"99999999": 5}}, {"logit_bias": [["x", "y"]]}, {"stop": "a" * 100_000}, {"min_p": -3},
        {"grammar": "root ::= " + "(" * 20000}, {"grammar": "root ::= root"}, {"grammar": "nonsense"},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}},
        {"samplers": [1, 2, 3]}, {"dry_sequence_breakers": []}, {"mirostat": 99}, {"n_probs": -1},
        {"tools": "x"}, {"tools": [{"type": "function"}]}, {"chat_template_kwargs": []}])
    def test_absurd_parameters(self, node, bad):
        """Answered or refused, but the engine lives: the same process answers afterwards."""
        pid = (node.deployment("smollm2:latest") or {}).get("enginePid")
        r = httpx.post(f"{node.url}/v1/chat/completions", json={**chat("Hi", max_tokens=4), **bad}, timeout=120)
        assert r.status_code == 200 or 400 <= r.status_code < 500, r.text
        if r.status_code != 200:
            assert error_of(r)
        if pid:
            assert node.deployment("smollm2:latest")["enginePid"] == pid

    def test_body_of_a_gigabyte_is_refused_before_it_is_read(self, node):
        answer = raw(node, b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1073741824\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b'"error"' in answer

    def test_chunked_body_without_end_is_cut_off(self, node):
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
        chunk = b"100000\r\n" + b"a" * 0x100000 + b"\r\n"
        assert raw(node, head + chunk * 80).startswith(b"HTTP/1.1 413 ")

    @pytest.mark.parametrize("data,status", [
        (b"GET\r\n\r\n", b"400"), (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 10, b"400"),
        (b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 100_000 + b"\r\n\r\n", b"431"),
        (b"POST /v1/models HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n", b"405"),
        (b"GET /nonesuch HTTP/1.1\r\nhost: localhost\r\n\r\n", b"404"),
        (b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
        (b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n", b"400"),
        (b"GET /healthz HTTP/1.1\r\nhost: evil.example\r\n\r\n", b"403")])
    def test_raw_requests(self, node, data, status):
        answer = raw(node, data)
        assert answer.startswith(b"HTTP/1.1 " + status), answer[:200]

    def test_half_a_request_then_gone(self, node):
        with socket.create_connection(("127.0.0.1", node.port)) as s:
            s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 500\r\n\r\n{\"model\":")
        assert httpx.get(f"{node.url}/healthz").status_code == 200

    def test_slow_loris_is_cut_off(self, node):
        sockets = [socket.create_connection(("127.0.0.1", node.port)) for _ in range(50)]
        try:
            for s in sockets:
                s.sendall(b"GET /healthz HTTP/1.1\r\n")
            end = time.monotonic() + 60
            open_sockets = list(sockets)
            while open_sockets and time.monotonic() < end:
                for s in list(open_sockets):
                    s.settimeout(0.05)
                    try:
                        s.sendall(b"x: y\r\n")
                        if s.recv(4096) == b"":
                            open_sockets.remove(s)
                    except TimeoutError:
                        pass
                    except OSError:
                        open_sockets.remove(s)
                assert httpx.get(f"{node.url}/healthz", timeout=30).status_code == 200
            assert not open_sockets
        finally:
            for s in sockets:
                s.close()


@pytest.mark.parametrize("bad", [
    {"temperature": -1}, {"top_p": -3}, {"top_p": 50}, {"min_p": 9}, {"typical_p": -1}, {"xtc_probability": 9},
    {"mirostat_eta": 1e6}, {"mirostat_tau": -1}, {"dynatemp_range": -5}, {"logit_bias": {"999999": 1}},
    {"logit_bias": [[-5, 1]]}, {"logit_bias": [[5, "x"]]}, {"lora": [{"id": 99}]}, {"stop": 5}, {"max_tokens": 0},
    {"messages": []}], ids=str)
def test_parameters_without_sense_are_refused_by_name(node, bad):
    r = httpx.post(f"{node.url}/v1/chat/completions", json={**chat("Hi", max_tokens=4), **bad}, timeout=120)
    assert r.status_code == 400, r.text
    error, field = r.json()["error"], next(iter(bad))
    assert error["message"].startswith(field) and error["param"] == field and error["type"] == "invalid_request_error"


@pytest.mark.parametrize("odd", [
    {"temperature": 0}, {"top_p": 1}, {"top_p": 0}, {"seed": -1}, {"top_k": 0}, {"max_tokens": 1}, {"stop": None}, {"lora": []},
    {"logit_bias": [["Hello", False]]}, {"logit_bias": {"5": -100}}, {"typical_p": 1, "min_p": 0, "xtc_threshold": 1}], ids=str)
def test_edges_are_answered(node, odd):
    r = httpx.post(f"{node.url}/v1/chat/completions", json={**chat("Hi", max_tokens=4), **odd}, timeout=120)
    assert r.status_code == 200, r.text


def test_gigabyte_costs_no_memory(node):
    """The daemon's memory does not grow with what clients announce or begin to send."""
    def rss():
        return int(pathlib.Path(f"/proc/{node.process.pid}/statm").read_text().split()[1]) * 4096
    before = rss()
    for _ in range(20):
        raw(node, b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1073741824\r\n\r\n" + b"a" * 100_000)
    assert rss() - before < 20e6


def test_error_bodies_are_json_of_the_apis_shape(node):
    openai = httpx.post(f"{node.url}/v1/chat/completions", content=b"{")
    assert set(openai.json()["error"]) >= {"message", "type", "code"}
    anthropic = httpx.post(f"{node.url}/v1/messages", content=b"{")
    assert anthropic.json()["type"] == "error" and anthropic.json()["error"]["type"] == "invalid_request_error"


def test_foreign_origin_is_refused(node):
    r = httpx.post(f"{node.url}/v1/chat/completions", json=chat("Hi"), headers={"origin": "https://evil.example"})
    assert r.status_code == 403


def test_connect_errors(node):
    r = httpx.post(f"{node.url}/strata.v1.Models/Show", json={"model": "nonesuch"})
    assert r.status_code == 404 and r.json()["code"] == "not_found"
    r = httpx.post(f"{node.url}/strata.v1.Models/Show", content=b"{", headers={"content-type": "application/json"})
    assert r.status_code == 400 and r.json()["code"] == "invalid_argument"
    assert httpx.post(f"{node.url}/strata.v1.Engine/Unload", json={}).status_code == 404
    assert json.loads(httpx.post(f"{node.url}/strata.v1.Cluster/ListNodes", json={}).text)["nodes"]
