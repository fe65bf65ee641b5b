"""Upstream's test of all ops, test-backend-ops, passes on the plug-in: ops that executors run give what they must, and are
all that the plug-in says they run."""
import re
import subprocess

from test_mesh import mesh  # noqa: F401 a fixture


def test_backend_ops(peers, mesh): # noqa: F811
    """Each node on one of two executors at random."""
    with mesh.working(range(2)):
        done = subprocess.run([str(peers / "test-backend-ops"), "test", "-b", "STRATA0"], env=mesh.env(2, scatter=1),
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=280)
    failed = re.findall(r"^.*\b(?:FAIL|error)\b.*$", done.stdout + done.stderr, re.MULTILINE)
    assert done.returncode == 0 and not failed, "\n".join(failed) + done.stderr[-3000:]
    passed, of = map(int, re.search(r"(\d+)/(\d+) tests passed", done.stdout).groups())
    assert passed == of > 5000
    assert sum(mesh.graphs(i)[-1] for i in range(2)) >= passed
