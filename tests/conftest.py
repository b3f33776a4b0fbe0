"""Shared fixtures: a fixed seed for every test, and one thread for small tensors."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _threads(request):
    """One thread: tensors of tests are too small to share. Kernels are tested with as many as there are."""
    if "kernels" in request.path.parts:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
