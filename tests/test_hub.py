"""`strata pull hf://…` against a local server that behaves like the hub."""
import pytest

from conftest import MINILM, Daemon
from fake_hub import FakeHub

URL = "hf://org/repo/dir/model.gguf"
SECRET = "hf_secret_token"


@pytest.fixture
def pull(tmp_path, monkeypatch):
    """pull(hub, token) runs `strata pull` on a daemon whose environment points at the hub."""
    started = []

    def run(hub: FakeHub, token: str | None = None, url: str = URL, check: bool = True):
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN", raising=False)
        if not started:
            started.append(Daemon(tmp_path / "home").start())
        return started[0], started[0].cli("pull", url, "--name", "pulled", check=check)
    yield run
    for d in started:
        d.stop()
        d.end_engines()


@pytest.fixture
def content():
    return MINILM.read_bytes()


def test_pull(pull, content):
    hub = FakeHub(content)
    d, _ = pull(hub)
    shown = d.json("show", "pulled")
    assert shown["model"]["origin"] == URL
    assert hub.sha256 in str(shown)  # the lineage has the file's digest
    assert d.cli("embed", "pulled", "a cat").returncode == 0
    hub.close()


def test_a_cut_download_is_resumed(pull, content):
    hub = FakeHub(content)
    hub.cut_after = 5_000_000
    d, _ = pull(hub)
    ranges = [r["range"] for r in hub.cdn_requests if "range" in r]
    assert any(r.startswith("bytes=") and int(r[6:].split("-")[0]) > 0 for r in ranges), hub.cdn_requests
    assert d.cli("verify", "pulled").returncode == 0
    hub.close()


def test_the_token_goes_to_the_hub_and_nowhere_else(pull, content):
    hub = FakeHub(content, token=SECRET)
    pull(hub, token=SECRET)
    assert all(r.get("authorization") == f"Bearer {SECRET}" for r in hub.hub_requests)
    assert hub.cdn_requests and not any("authorization" in r for r in hub.cdn_requests)
    hub.close()


def test_a_gated_repository_without_token_says_what_to_do(pull, content):
    hub = FakeHub(content, token=SECRET)
    _, done = pull(hub, check=False)
    assert done.returncode == 1 and "HF_TOKEN" in done.stderr
    hub.close()


def test_the_token_is_never_shown(pull, content):
    hub = FakeHub(content, token="another")
    d, done = pull(hub, token=SECRET, check=False)
    assert done.returncode == 1
    assert SECRET not in done.stderr + done.stdout + d.log() + d.cli("logs").stdout
    hub.close()


def test_missing_file(pull, content):
    hub = FakeHub(content)
    _, done = pull(hub, url="hf://org/repo/nonesuch.gguf", check=False)
    assert done.returncode == 1 and "nonesuch.gguf" in done.stderr
    hub.close()


def test_wrong_bytes_are_refused(pull, content):
    hub = FakeHub(content)
    hub.serve_wrong_bytes = True
    d, done = pull(hub, check=False)
    assert done.returncode == 1 and "sha" in done.stderr.lower()
    assert d.json("ls")["models"] == []
    hub.close()


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://127.0.0.1/x"])
def test_redirect_to_another_scheme_is_refused(pull, content, target):
    hub = FakeHub(content)
    hub.redirect_to = target
    _, done = pull(hub, check=False)
    assert done.returncode == 1
    hub.close()


@pytest.mark.parametrize("url", ["hf://", "hf://org", "hf://org/repo", "hf://../../etc/passwd", "hf://org/repo/../../x",
                                 "http://127.0.0.1/x", "hf://org/repo/a\nb", "hf://org/repo/\x1b[31m"])
def test_bad_urls(pull, content, url):
    hub = FakeHub(content)
    _, done = pull(hub, url=url, check=False)
    assert done.returncode in (1, 2) and "\x1b" not in done.stderr
    assert hub.hub_requests == []
    hub.close()
