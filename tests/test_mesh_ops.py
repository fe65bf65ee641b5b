"""Upstream's test of single ops, test-backend-ops, passes on the plug-in: what it says executors run they run, with the right
results."""
import re
import subprocess

from test_mesh import mesh  # noqa: F401 a fixture

# What language models are made of; all ops together take longer than CI has.
OPS = ("ADD,ARGSORT,CONCAT,CONT,CPY,FLASH_ATTN_EXT,GATED_DELTA_NET,GATED_LINEAR_ATTN,GET_ROWS,MUL,MUL_MAT,MUL_MAT_ID,NORM,"
       "OPT_STEP_ADAMW,RMS_NORM,ROPE,RWKV_WKV6,RWKV_WKV7,SCALE,SET_ROWS,SILU,SOFT_MAX,SSM_CONV,SSM_SCAN,SUM_ROWS,SWIGLU,TOP_K")
# Without the large ones, types that take long to make, and some of the many forms of attention and products.
PARAMETERS = (r"^(?!.*(\d{5}|be1=700|64,64,1\]|\[1536|iq[123]_|tq[12]_|kv=(?!113)|type_K=(?!f16)|n=\d+,k=(?!256,)|"
              r"n_mats=(?!4,)))")


def test_backend_ops(peers, mesh): # noqa: F811
    """Each node on one of two executors at random."""
    args = [str(peers / "test-backend-ops"), "test", "-b", "STRATA0", "-o", OPS, "-p", PARAMETERS]
    with mesh.working(range(2)):
        done = subprocess.run(args, env=mesh.env(2, scatter=1), stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              errors="replace", timeout=280)
    failed = re.findall(r"^.*\bFAIL\b.*$", done.stdout, re.MULTILINE)
    assert done.returncode == 0 and not failed, "\n".join(failed) + done.stderr[-3000:]
    passed, of = map(int, re.search(r"(\d+)/(\d+) tests passed", done.stdout).groups())
    assert passed == of > 2000
    assert sum(mesh.graphs(i)[-1] for i in range(2)) >= passed
