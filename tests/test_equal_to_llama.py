"""strata computes what llama.cpp computes: greedy text and embeddings beside llama.cpp's own server on the same file."""
import httpx
import pytest

from conftest import MINILM, SMOLLM2, llama_server

PROMPTS = ["The capital of France is", "def fibonacci(n):", "Once upon a time, in a land far away,", "1 2 3 4 5",
           "Ünïcödé 漢字 😀 and"]
# Each prompt alone in a fresh slot: llama.cpp's results depend on how prompts are batched together.
GREEDY = {"temperature": 0, "max_tokens": 64, "cache_prompt": False}


@pytest.fixture(scope="module")
def peer(llama):
    with llama_server(llama, SMOLLM2, "-c", "4096", "-np", "1", "-b", "512", "-ub", "512") as url:
        yield url


@pytest.mark.parametrize("prompt", PROMPTS)
def test_completion(node, peer, prompt):
    body = {"model": "smollm2", "prompt": prompt, **GREEDY}
    ours, theirs = (httpx.post(f"{url}/v1/completions", json=body, timeout=120).json() for url in (node.url, peer))
    assert ours["choices"][0]["text"] == theirs["choices"][0]["text"]


def test_chat(node, peer):
    body = {"model": "smollm2", "messages": [{"role": "system", "content": "Be brief."},
                                             {"role": "user", "content": "Why is the sky blue?"}], **GREEDY}
    ours, theirs = (httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120).json() for url in (node.url, peer))
    assert ours["choices"][0]["message"] == theirs["choices"][0]["message"]


def test_tokenize(node, peer):
    body = {"model": "smollm2", "content": "Hello, wörld! <|im_start|>", "with_pieces": False}
    ours, theirs = (httpx.post(f"{url}/tokenize", json=body, timeout=30).json() for url in (node.url, peer))
    assert ours["tokens"] == theirs["tokens"] and len(ours["tokens"]) > 3


SENTENCES = ["A man is eating food.", "A man is eating a piece of bread.", "The girl is carrying a baby.",
             "A cheetah is running behind its prey.", "The stock market fell sharply today."]


def embed(url, texts):
    answer = httpx.post(f"{url}/v1/embeddings", json={"model": "minilm", "input": texts}, timeout=60)
    assert answer.status_code == 200, answer.text
    return [d["embedding"] for d in answer.json()["data"]]


def test_embeddings(node, llama):
    with llama_server(llama, MINILM, "--embeddings") as peer:
        for ours, theirs in zip(embed(node.url, SENTENCES), embed(peer, SENTENCES), strict=True):
            assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-4


def test_known_pairs_rank_as_they_should(node):
    vectors = embed(node.url, SENTENCES)
    similarity = [sum(a * b for a, b in zip(vectors[0], v)) for v in vectors]
    assert similarity[0] > 0.999
    # The paraphrase is by far the nearest, and the unrelated sentence is far away.
    assert similarity[1] > 0.6 and similarity[1] > max(similarity[2:]) + 0.3
    assert similarity[4] < 0.2
