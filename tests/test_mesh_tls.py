"""A mesh that talks TLS: who has a certificate of its CA gets what he gets locally, everybody else an error that says why."""
import os
import socket
import ssl
import subprocess

import pytest

from conftest import BIN, ON_MESH, SMOLLM2, certificates, complete, completion_args, executors, wait_until

PROMPT = "Once upon a time, in a land far away,"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return dict(zip(("engine", "driver"), certificates(tmp_path_factory.mktemp("certificates"), "engine", "driver")))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    return certificates(tmp_path_factory.mktemp("stranger"), "stranger")[0]


@pytest.fixture(scope="module")
def mesh(tmp_path_factory, folders):
    with executors(tmp_path_factory.mktemp("mesh"), 2, "--tls", str(folders["engine"])) as started:
        yield started


def refused(peers, env) -> str:
    done = subprocess.run(completion_args(peers, SMOLLM2, PROMPT, 4, *ON_MESH), env=env, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=60)
    assert done.returncode > 0
    return done.stderr


def test_greedy_text(peers, mesh, folders):
    """Weights come from the driver, activations go from executor to executor."""
    expected = complete(completion_args(peers, SMOLLM2, PROMPT, 48))
    with mesh.working(range(2)):
        assert complete(completion_args(peers, SMOLLM2, PROMPT, 48, *ON_MESH), mesh.env(tls=folders["driver"])) == expected


def test_a_deployment(daemon, mesh, folders):
    daemon.cli("import", str(SMOLLM2), "--name", "smollm2")
    ask = ("--temperature", "0", "--max-tokens", "24", PROMPT)
    expected = daemon.cli("run", "smollm2", *ask).stdout
    on = ("--on", ",".join(mesh.addresses), "--tls")
    with mesh.working(range(2)):
        here = os.path.relpath(folders["driver"], daemon.home)
        assert daemon.cli("run", "smollm2", *on, here, *ask, cwd=daemon.home).stdout == expected
        daemon.cli("stop", "smollm2")
    done = daemon.cli("run", "smollm2", *on, "/no/such/folder", "hello", check=False)
    assert done.returncode == 1 and "/no/such/folder/ca.pem: No such file" in done.stderr


def test_another_ca(peers, mesh, stranger):
    said = refused(peers, mesh.env(tls=stranger))
    assert mesh.addresses[0] in said and "CN=engine was not signed by the CA" in said
    wait_until(lambda: "did not take" in mesh.logs[0].read_text(), 10, "a line in the executor's log")


def test_a_certificate_of_another_ca(mesh, stranger):
    """As above, but of a client that takes any executor."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(stranger / "cert.pem", stranger / "key.pem")
    host, port = mesh.addresses[0].rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=30) as plain, context.wrap_socket(plain) as connection:
        with pytest.raises(ssl.SSLError, match="unknown ca"):
            connection.recv(1)
    wait_until(lambda: "CN=stranger was not signed by the CA" in mesh.logs[0].read_text(), 10, "a line in the executor's log")


def test_one_side_without(peers, mesh, folders, tmp_path):
    assert "only TLS is spoken here" in refused(peers, mesh.env())
    with executors(tmp_path, 1) as plain:
        assert f"{plain.addresses[0]} speaks without TLS" in refused(peers, plain.env(tls=folders["driver"]))


def test_an_executor_with_a_folder_that_is_not_right(folders, tmp_path):
    (folder,) = certificates(tmp_path / "certificates", "open")
    (folder / "key.pem").chmod(0o644)
    done = subprocess.run([str(BIN / "strata-engine"), "executor", "--listen", "127.0.0.1:0", "--tls", str(folder)],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1 and f"chmod 600 {folder / 'key.pem'}" in done.stderr
