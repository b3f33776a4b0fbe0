"""The code in README and CONTRIBUTING does what it says."""

from __future__ import annotations

import importlib
import re
import textwrap
from pathlib import Path

import pytest
import torch

from diffeo.testing import check_transform

ROOT = Path(__file__).resolve().parents[1]


def blocks(name: str) -> list[str]:
    text = (ROOT / name).read_text()
    return [textwrap.dedent(b) for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]


@pytest.mark.slow
def test_readme_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = blocks("README.md")
    assert len(found) == 2
    numpy_example: dict = {}
    exec(found[0], numpy_example)
    assert numpy_example["samples"].shape == (1000, 3)
    assert numpy_example["log_density"].isfinite().all()
    assert (tmp_path / "model.safetensors").exists()
    by_hand: dict = {}
    exec(found[1], by_hand)
    assert by_hand["loss"] < -by_hand["flow"].base(by_hand["x"]).mean() + 0.1


def test_the_transform_in_contributing_keeps_the_contract(tmp_path, monkeypatch):
    (tmp_path / "softsign.py").write_text(blocks("CONTRIBUTING.md")[0])
    monkeypatch.syspath_prepend(tmp_path)
    check_transform(importlib.import_module("softsign").Softsign(), torch.randn(6))


def test_links_between_the_documents_lead_somewhere():
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for link in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            if not link.startswith("http"):
                assert (path.parent / link).exists(), f"{path.name}: {link}"
