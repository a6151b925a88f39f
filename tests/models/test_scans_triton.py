"""The Triton kernels compute what the loop does, by Triton's interpreter on a CPU where Triton is installed."""

import importlib.util
import os
import subprocess
import sys

import pytest

PROGRAM = """
import torch
from segregation.models import scan_triton
from segregation.models.scan_linear import linear_scan
from tests.models.test_scans_fast import by_steps, inputs

scan_triton.available = lambda tensor: tensor.dtype != torch.float64
for sizes in ((3, 70, 130), (1, 3, 5), (2, 32, 32)):
    a, x, resets, start = inputs(*sizes)
    for some, initial in ((None, None), (resets, start), (None, start), (resets, None)):
        leaves = [t.clone().requires_grad_() for t in (a, x, initial) if t is not None]
        exact = [t.detach().double().requires_grad_() for t in leaves]
        states = linear_scan(leaves[0], leaves[1], some, leaves[2] if initial is not None else None)
        expected = by_steps(exact[0], exact[1], some, exact[2] if initial is not None else None)
        torch.testing.assert_close(states.double(), expected, atol=2e-6, rtol=0)
        upstream = torch.randn_like(x)
        got = torch.autograd.grad(states, leaves, upstream)
        for mine, true in zip(got, torch.autograd.grad(expected, exact, upstream.double()), strict=True):
            torch.testing.assert_close(mine.double(), true, atol=1e-5, rtol=1e-5)
print("equal")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton, which CPU builds of torch lack")
def test_interpreted_kernels_equal_the_loop_forward_and_backward() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "equal", run.stderr
