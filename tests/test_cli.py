"""The command line as a person and a script use it."""
import json
import os
import pty
import select
import signal
import subprocess
import time

import pytest

from conftest import BIN, SMOLLM2, Daemon, wait_until

GREEDY = ("--temperature", "0", "--max-tokens", "12")


def test_version():
    out = subprocess.run([str(BIN / "strata"), "version"], check=True, capture_output=True, text=True).stdout
    assert out.startswith("strata 0.")
    assert json.loads(subprocess.run([str(BIN / "strata"), "--json", "version"], check=True, capture_output=True,
                                     text=True).stdout)["version"]


def test_help_of_every_command():
    top = subprocess.run([str(BIN / "strata"), "--help"], check=True, capture_output=True, text=True).stdout
    for command in ("serve", "run", "embed", "import", "pull", "ls", "show", "verify", "rm", "gc", "ps", "stop", "logs",
                    "version"):
        assert command in top
        out = subprocess.run([str(BIN / "strata"), command, "--help"], check=True, capture_output=True, text=True).stdout
        assert len(out.splitlines()) >= 3


def test_run_with_a_prompt(node):
    assert len(node.cli("run", "smollm2", "What is the capital of France?", *GREEDY).stdout) > 10


def test_run_reads_stdin(node):
    question = "What is the capital of France?"
    assert node.cli("run", "smollm2", *GREEDY, input=question).stdout == node.cli("run", "smollm2", question, *GREEDY).stdout


def test_run_json_lines(node):
    lines = [json.loads(line) for line in node.cli("--json", "run", "smollm2", "Hi", *GREEDY).stdout.splitlines()]
    assert lines


def test_embed(node):
    vectors = node.json("embed", "minilm", "a cat", "a dog")
    text = json.dumps(vectors)
    assert text.count("[") >= 2
    assert len(node.cli("embed", "minilm", "a cat").stdout) > 100


def test_every_listing_has_json(node):
    for args in (("ls",), ("ps",), ("show", "smollm2"), ("version",)):
        assert isinstance(node.json(*args), (dict, list))


def test_no_colours_in_a_pipe(node):
    for args in (("ls",), ("ps",), ("show", "smollm2")):
        assert "\x1b" not in node.cli(*args).stdout


def test_errors_are_one_line_and_exit_codes_hold(node):
    done = node.cli("run", "nonesuch", "Hi", check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("strata: ") and "nonesuch" in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert node.cli("nonsense", check=False).returncode == 2
    assert node.cli("run", "--nonsense", check=False).returncode == 2
    error = node.cli("--json", "show", "nonesuch", check=False)
    assert error.returncode == 1 and json.loads(error.stdout)["error"]["message"]


def test_logs(node):
    assert node.cli("logs").stdout
    node.cli("run", "smollm2", "Hi", *GREEDY)
    assert node.cli("logs", "smollm2").stdout


def test_run_of_a_file_starts_a_daemon_and_imports(tmp_path):
    """`strata run FILE.gguf` on a fresh machine just works."""
    env = {**os.environ, "STRATA_HOME": str(tmp_path / "home"), "NO_COLOR": "1", "STRATA_LISTEN": "127.0.0.1:0"}

    def strata(*args):
        return subprocess.run([str(BIN / "strata"), *args], env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=120)
    try:
        first = strata("run", str(SMOLLM2), "What is the capital of France?", *GREEDY)
        assert first.returncode == 0, first.stderr
        assert len(first.stdout) > 10
        assert strata("run", str(SMOLLM2), "What is the capital of France?", *GREEDY).stdout == first.stdout
        assert len(json.loads(strata("--json", "ls").stdout)["models"]) == 1
    finally:
        stopped = strata("stop", "--daemon")
    assert stopped.returncode == 0, stopped.stderr


def test_ps_without_a_daemon_says_so(tmp_path):
    env = {**os.environ, "STRATA_HOME": str(tmp_path / "home")}
    done = subprocess.run([str(BIN / "strata"), "ps"], env=env, capture_output=True, text=True, timeout=30)
    assert "strata serve" in done.stdout + done.stderr


def test_serve_json_logs_json_lines(tmp_path):
    env = {**os.environ, "STRATA_HOME": str(tmp_path / "home")}
    serve = (str(BIN / "strata"), "--json", "serve", "--listen")
    daemon = subprocess.Popen([*serve, "127.0.0.1:0"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    first = json.loads(daemon.stdout.readline())
    assert first["level"] == "info" and "serves" in first["message"] and first["time"].endswith("Z")
    daemon.send_signal(signal.SIGTERM)
    out, err = daemon.communicate(timeout=60)
    assert daemon.returncode == 0 and err == ""
    assert all(json.loads(line)["message"] for line in out.splitlines())
    wrong = subprocess.run([*serve, "nonsense"], env=env, capture_output=True, text=True, timeout=60)
    assert wrong.returncode == 2 and json.loads(wrong.stdout)["error"]["code"] == "invalid_argument"


def test_a_daemon_killed_during_an_import_is_explained(tmp_path):
    engine = tmp_path / "engine"
    begun = tmp_path / "begun"
    engine.write_text(f"#!/bin/sh\ntouch '{begun}'\nexec sleep 20\n")
    engine.chmod(0o755)
    daemon = Daemon(tmp_path / "home", "--engine", str(engine)).start()
    importing = subprocess.Popen([str(BIN / "strata"), "import", str(SMOLLM2)], env=daemon.env, stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE, text=True)
    try:
        wait_until(begun.exists, what="the job")
    finally:
        daemon.stop(signal.SIGKILL)
    _, err = importing.communicate(timeout=60)
    assert importing.returncode == 1 and err.startswith("strata: the daemon ended while it worked on this; run"), err


class Terminal:
    """A program on a pseudo-terminal."""

    def __init__(self, *command, env):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(command[0], command, {**env, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"})
        self.text = ""

    def expect(self, needle: str, timeout_s=60) -> str:
        end = time.monotonic() + timeout_s
        while needle not in self.text:
            ready, _, _ = select.select([self.fd], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                pytest.fail(f"{needle!r} did not appear in {self.text!r}")
            try:
                self.text += os.read(self.fd, 65536).decode(errors="replace")
            except OSError:
                if needle not in self.text:
                    pytest.fail(f"the program ended before {needle!r}: {self.text!r}")
        seen, self.text = self.text, self.text[self.text.index(needle) + len(needle):]
        return seen

    def send(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def end(self) -> int:
        code = None
        end = time.monotonic() + 20
        while code is None and time.monotonic() < end:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                code = os.waitstatus_to_exitcode(status)
            else:
                if select.select([self.fd], [], [], 0.05)[0]:
                    try:
                        os.read(self.fd, 65536)
                    except OSError:
                        pass
        if code is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            pytest.fail("the program did not end")
        os.close(self.fd)
        return code


def test_interactive(node):
    t = Terminal(str(BIN / "strata"), "run", "smollm2", *GREEDY, env=node.env)
    t.expect(">>>")
    t.send("What is the capital of France?\r")
    t.expect("Marseillaise")  # what the model says, greedy
    t.expect(">>>")
    t.send("/help\r")
    t.expect("/bye")
    t.send("/bye\r")
    assert t.end() == 0


def idle_engine(node):
    """The status of SmolLM2's engine, when none of its slots is busy."""
    engine = node.deployment("smollm2:latest")["engine"]
    return None if any(slot.get("busy") for slot in engine["slots"]) else engine


def test_interactive_ctrl_c_ends_the_answer_not_the_program(node):
    node.cli("run", "smollm2", "Hi", "--max-tokens", "1")
    before = int(wait_until(lambda: idle_engine(node))["generatedTokensTotal"])
    t = Terminal(str(BIN / "strata"), "run", "smollm2", "--temperature", "0", "--max-tokens", "1500", env=node.env)
    t.expect(">>>")
    t.send("Write a very long story about the sea.\r")
    t.expect(" ")
    t.send("\x03")
    t.expect(">>>")
    engine = wait_until(lambda: idle_engine(node), 60, "a free slot after Ctrl-C")
    assert int(engine["generatedTokensTotal"]) - before < 1500
    t.send("\x04")
    assert t.end() == 0


def test_completion_is_valid_bash():
    script = subprocess.run([str(BIN / "strata"), "completion", "bash"], check=True, capture_output=True, text=True).stdout
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    out = subprocess.run(["bash", "-c", f"{script}\nCOMP_WORDS=(strata ve); COMP_CWORD=1; COMP_LINE='strata ve'; COMP_POINT=9; "
                          "f=$(complete -p strata | sed 's/.*-F \\([^ ]*\\).*/\\1/'); $f strata ve strata; echo ${COMPREPLY[@]}"],
                         capture_output=True, text=True, env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}).stdout
    assert "verify" in out and "version" in out
