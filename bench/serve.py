#!/usr/bin/env python3
"""Decode, prefill and time to first token through `strata serve`, beside llama.cpp's own llama-server: the same build, the
same file, the same flags (2 threads, 8 slots, micro-batch 512), the same client, in turn."""
import contextlib
import json
import subprocess
import threading
import time

import httpx

from common import BIN, MODELS, Report, llama_dir, llama_server, options, running, temporary_home

SLOTS, CONTEXT, BATCH, THREADS = 8, 2048, 512, 2


class Api:
    """One server, asked as any client would."""

    def __init__(self, url: str):
        self.url, self.prompts = url, 0
        self.client = httpx.Client(timeout=300, limits=httpx.Limits(max_connections=64))

    def stream(self, prompt: str, tokens: int) -> list[float]:
        """The times at which the tokens of a greedy completion came."""
        times = []
        body = {"model": "m", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True, "cache_prompt": False,
                "ignore_eos": True}
        with self.client.stream("POST", f"{self.url}/v1/completions", json=body) as r:
            assert r.status_code == 200, r.read()
            for line in r.iter_lines():
                if line.startswith("data: {") and '"finish_reason":null' in line:
                    times.append(time.perf_counter())
        assert len(times) > tokens // 2, f"{self.url}: {len(times)} events for {tokens} tokens"
        return times

    def answer(self, model: str, prompt: str, tokens: int) -> dict:
        return self._post("completions", model=model, prompt=prompt, max_tokens=tokens, cache_prompt=False, ignore_eos=True)

    def chat(self, model: str, messages: list[dict], tokens: int) -> dict:
        return self._post("chat/completions", model=model, messages=messages, max_tokens=tokens)

    def _post(self, path: str, **body) -> dict:
        r = self.client.post(f"{self.url}/v1/{path}", json={"temperature": 0, **body})
        assert r.status_code == 200, r.text
        return r.json()

    def decode(self, clients: int, tokens: int = 96) -> float:
        """Tokens per second while all clients decode."""
        times: list[list[float]] = [[] for _ in range(clients)]

        def one(i: int) -> None:
            times[i] = self.stream(f"Story number {i}: once upon a time", tokens)
        in_parallel(one, clients)
        begin, end = max(t[0] for t in times), min(t[-1] for t in times)
        return sum(sum(begin < x <= end for x in t) for t in times) / (end - begin)

    def prefill(self, clients: int) -> float:
        """Prompt tokens per second; every prompt is new, so that nothing is cached."""
        tokens = [0] * clients

        def one(i: int) -> None:
            prompt = f"{self.prompts} {i} " + " ".join(f"w{(self.prompts * 7919 + i * 31 + j) % 97}" for j in range(160))
            tokens[i] = self.answer("m", prompt, 1)["usage"]["prompt_tokens"]
        self.prompts += 1
        begin = time.perf_counter()
        in_parallel(one, clients)
        return sum(tokens) / (time.perf_counter() - begin)


def in_parallel(one, clients: int) -> None:
    threads = [threading.Thread(target=one, args=(i,)) for i in range(clients)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()


def first_token(report: Report, node) -> None:
    """The same request through the gateway and straight to the engine's socket, in turn, from one process."""
    done = subprocess.run([str(BIN / "strata-bench-client"), "first-token", "--port", str(node.port), "--engine",
                           str(node.engine_socket()), "--model", "m", "--count", "300"],
                          check=True, capture_output=True, text=True)
    samples = json.loads(done.stdout)
    ours, peer = iter(samples["gateway_ms"]), iter(samples["engine_ms"])
    report.pair("first token, gateway against engine", "ms", lambda: next(ours), lambda: next(peer),
                len(samples["gateway_ms"]), at_most=1.0, warm_up=0, difference=True)


def main() -> None:
    args = options(__doc__, rounds=9)
    report = Report("serve", args.only)
    for quantization in ("q4_1", "q4_0"):
        file = MODELS / f"smollm2-135m-instruct-{quantization}.gguf"
        with contextlib.ExitStack() as stack:
            home = stack.enter_context(temporary_home())
            node = stack.enter_context(running(home, models=((file, "m"),)))
            peer_url = stack.enter_context(llama_server(llama_dir(), file, "-np", str(SLOTS), "-c", str(SLOTS * CONTEXT),
                                                        "-b", str(BATCH), "-ub", str(BATCH)))
            node.start_model("m", slots=SLOTS, contextTokens=CONTEXT, threads=THREADS, batchTokens=BATCH)
            strata, peer = Api(node.url), Api(peer_url)
            for clients in (1, 8):
                who = f"{clients} client" + "s" * (clients > 1)
                for what in ("decode", "prefill"):
                    report.pair(f"{quantization} {what}, {who}", "tokens/s", lambda: getattr(strata, what)(clients),
                                lambda: getattr(peer, what)(clients), args.rounds, at_least=0.97)
            if quantization == "q4_1" and report.wants("first token"):
                first_token(report, node)
    report.finish()


if __name__ == "__main__":
    main()
