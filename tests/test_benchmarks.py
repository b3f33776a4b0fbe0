"""The pages of the benchmarks say what the stored results say."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("module", "page"),
    [
        ("report", "benchmarks.md"),
        ("gallery", "gallery/index.md"),
        ("image_gallery", "gallery/pictures.md"),
        ("listening", "listening.md"),
    ],
)
def test_a_page_is_what_the_stored_results_give(module, page, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    assert importlib.import_module(module).page() == (ROOT / "docs" / page).read_text()


def test_the_cards_are_what_the_stored_results_give(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    cards = importlib.import_module("cards").CARDS
    assert {name: (ROOT / "docs" / "cards" / f"{name}.md").read_text() for name in cards} == {
        name: of() for name, of in cards.items()
    }


def test_the_readme_quotes_the_stored_results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    assert importlib.import_module("report").readme() == (ROOT / "README.md").read_text()


def test_without_a_gpu_the_benchmark_says_so():
    command = [sys.executable, str(ROOT / "benchmarks" / "speed.py"), "--device", "cuda"]
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=hidden, check=True)
    assert done.stdout == "speed.py: PyTorch sees no GPU here, so nothing was measured on one\n"
