"""What llama.cpp does beside plain generation gives the same over a mesh: adapters, drafts, saved states, parallel and copied
sequences. Every comparison proves by the executors' logs that they did the work."""
import httpx
import pytest

import synthetic_models
from conftest import ON_MESH, SMOLLM2, SMOLLM2_BY_TYPE, complete, completion_args, llama_server
from test_mesh import (LONG_PROMPT, PROMPT, assert_equal_to_local, local,
                       mesh, synthetic)  # noqa: F401 the last two are fixtures

PROMPTS = [PROMPT, "The capital of France is", LONG_PROMPT[:800], "Two plus two"]
KINDS = ["decoder", *synthetic_models.KINDS]


@pytest.fixture
def model(kind, synthetic): # noqa: F811
    return SMOLLM2_BY_TYPE["q4_0"] if kind == "decoder" else synthetic / f"{kind}.gguf"


def assert_answers_equal(llama, mesh, model, talk, *options, on_mesh=ON_MESH): # noqa: F811
    """What talk(url) returns of llama.cpp's server over two executors is what it returns of the server alone; that."""
    options = ("-t", "1", "-fit", "off", "-c", "2048", *options)
    with llama_server(llama, model, *options) as url:
        expected = talk(url)
    with mesh.working(range(2)), llama_server(llama, model, *options, *on_mesh, env=mesh.env(2)) as url:
        assert talk(url) == expected
    return expected


def post(url, path, body):
    answer = httpx.post(url + path, json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.json()


def ask(url, prompt, **body):
    return post(url, "/completion", {"prompt": prompt, "n_predict": 24, "temperature": 0, "ignore_eos": True, **body})


def texts(answers) -> list[str]:
    return [answer["content"] for answer in sorted(answers, key=lambda answer: answer["index"])]


# ---------------------------------------------------------------------------------------------------------------- adapters

def assert_changed_as_locally(peers, mesh, model, options):
    assert local(peers, model, PROMPT, 48, *options) != local(peers, model, PROMPT, 48)
    assert_equal_to_local(peers, mesh, 2, model, options=options)


@pytest.mark.parametrize("kind", KINDS)
def test_lora(peers, mesh, kind, model, tmp_path): # noqa: F811
    synthetic_models.write_lora(model, tmp_path / "lora.gguf")
    options = ("--lora", str(tmp_path / "lora.gguf"))
    assert_changed_as_locally(peers, mesh, model, options)
    assert_equal_to_local(peers, mesh, 3, model, options=options, tokens=12, scatter=4)


def test_adapters_by_request(llama, mesh, tmp_path): # noqa: F811
    """Two are loaded, and each request has its share of them."""
    files = [tmp_path / "one.gguf", tmp_path / "two.gguf"]
    for seed, file in enumerate(files):
        synthetic_models.write_lora(SMOLLM2, file, seed)

    def talk(url):
        scales = [(1, 0), (0, 1), (0, 0), (0.5, 0.5), (1, 0)]
        return [ask(url, PROMPT, lora=[{"id": i, "scale": scale} for i, scale in enumerate(of)])["content"] for of in scales]
    said = assert_answers_equal(llama, mesh, SMOLLM2, talk, "-np", "1", *(w for file in files for w in ("--lora", str(file))))
    assert len(set(said)) == 4 and said[0] == said[4]


@pytest.mark.parametrize("kind", KINDS)
def test_control_vector(peers, mesh, kind, model, tmp_path): # noqa: F811
    synthetic_models.write_control_vector(model, tmp_path / "vector.gguf")
    options = ("--control-vector", str(tmp_path / "vector.gguf"))
    assert_changed_as_locally(peers, mesh, model, options)


# ------------------------------------------------------------------------------------------------------------------ drafts

def test_speculative_decoding(llama, mesh): # noqa: F811
    """The driver drafts with a model of its own, executors verify."""
    def talk(url):
        answers = [ask(url, prompt, n_predict=40) for prompt in PROMPTS[:2]]
        return [(answer["content"], answer["timings"]["draft_n"], answer["timings"]["draft_n_accepted"]) for answer in answers]
    options = ("-np", "1", "--spec-type", "draft-simple", "-md", str(SMOLLM2_BY_TYPE["q4_0"]), "-devd", "none", "-td", "1")
    drafted = assert_answers_equal(llama, mesh, SMOLLM2, talk, *options)
    assert all(accepted > 5 for _, _, accepted in drafted)
    assert any(accepted < all for _, all, accepted in drafted)


# ------------------------------------------------------------------------------------------------------------ saved states

@pytest.mark.parametrize("kind", KINDS)
def test_prompt_cache(peers, mesh, kind, model, tmp_path): # noqa: F811
    """A state that was saved on one side is the same file as on the other, and goes on at either."""
    def run(tokens, file, *options, env=None):
        return complete(completion_args(peers, model, PROMPT, tokens, "--prompt-cache", str(file), *options), env)
    here, there = tmp_path / "here", tmp_path / "there"
    run(16, here, "--prompt-cache-all")
    with mesh.working(range(2)):
        run(16, there, "--prompt-cache-all", *ON_MESH, env=mesh.env(2))
    assert there.read_bytes() == here.read_bytes()
    expected = run(48, here, "--prompt-cache-ro")
    with mesh.working(range(4)):
        assert run(48, here, "--prompt-cache-ro", *ON_MESH, env=mesh.env(4, cuts=3)) == expected
    assert len(expected) > len(PROMPT) + 20


@pytest.mark.parametrize("kind", KINDS)
def test_saved_slots(llama, mesh, kind, model, tmp_path): # noqa: F811
    """A slot's state is saved, forgotten, and restored into another slot."""
    def talk(url):
        first = ask(url, PROMPT, id_slot=0, cache_prompt=True)["content"]
        saved = post(url, "/slots/0?action=save", {"filename": "slot"})["n_saved"]
        data = (tmp_path / "slot").read_bytes()
        post(url, "/slots/0?action=erase", {})
        assert post(url, "/slots/1?action=restore", {"filename": "slot"})["n_restored"] == saved > 0
        return first, data, ask(url, PROMPT + first, id_slot=1, cache_prompt=True)["content"]
    assert_answers_equal(llama, mesh, model, talk, "-np", "2", "--slot-save-path", str(tmp_path))


@pytest.mark.parametrize("kind", KINDS)
def test_conversations_take_turns(llama, mesh, kind, model): # noqa: F811
    """Two conversations in one slot: the one that is left is kept in memory, and models that can't forget a token go on from
    their checkpoints."""
    def talk(url):
        said, cached = ["Once there was a king.", LONG_PROMPT[:900]], []
        for _ in range(3):
            for i, prompt in enumerate(said):
                answer = ask(url, prompt, cache_prompt=True)
                said[i] += answer["content"] + " And then?"
                cached.append(answer["timings"]["cache_n"])
        return said, cached
    _, cached = assert_answers_equal(llama, mesh, model, talk, "-np", "1")
    assert all(tokens > 0 for tokens in cached[2:]), cached


# ------------------------------------------------------------------------------------------------------- several sequences

@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cache", ["--kv-unified", "--no-kv-unified"])
def test_parallel_slots(llama, mesh, kind, model, cache): # noqa: F811
    """Four prompts at once; those that end first leave their slots to a fifth and a sixth."""
    def talk(url):
        return texts(ask(url, [*PROMPTS, "One", "Hello, my name"], n_predict=40))
    assert len(set(assert_answers_equal(llama, mesh, model, talk, "-np", "4", cache))) == 6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cache", ["--kv-unified", "--no-kv-unified"])
def test_sequence_copies(llama, mesh, kind, model, cache): # noqa: F811
    """One prompt, whose sequence is copied for each of three answers."""
    def talk(url):
        return texts(ask(url, LONG_PROMPT[:600], n_cmpl=3, temperature=1.5, seed=7))
    assert len(set(assert_answers_equal(llama, mesh, model, talk, "-np", "3", cache))) == 3
