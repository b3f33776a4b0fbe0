"""The code in README and CONTRIBUTING does what it says."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import textwrap
from pathlib import Path
from types import ModuleType

import pytest
import torch

import diffeo
from diffeo.testing import check_transform

ROOT = Path(__file__).resolve().parents[1]
API = ROOT / "docs" / "api"


def blocks(name: str) -> list[str]:
    text = (ROOT / name).read_text()
    return [textwrap.dedent(b) for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]


@pytest.mark.slow
def test_readme_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table, estimators, tensors, by_hand, energy = ({} for _ in range(5))
    found = blocks("README.md")
    assert len(found) == 5
    for code, names in zip(found, (table, estimators, tensors, by_hand, energy), strict=True):
        exec(code, names)
    assert table["samples"].dtypes.equals(table["table"].dtypes)
    assert table["reasons"].shape == (5, 3)
    assert (tmp_path / "model.safetensors").exists()
    assert estimators["unusual"].mean() == pytest.approx(0.05, abs=0.01)
    inside = (estimators["interval"][:, 0] <= estimators["y"]) & (estimators["y"] <= estimators["interval"][:, 1])
    assert 0.8 < inside.mean() < 1
    assert tensors["samples"].shape == (1000, 3)
    assert tensors["log_density"].isfinite().all()
    assert by_hand["loss"] < -by_hand["flow"].base(by_hand["x"]).mean() + 0.1
    assert energy["result"].effective_sample_size > 0.5


def test_the_page_on_pictures_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(blocks("docs/images.md")[0], names)
    assert names["bits"].shape == (100,)
    assert names["bold"].shape == (5, 1, 8, 8)
    assert (tmp_path / "digits.png").exists()


def test_every_public_name_has_an_api_page():
    listed = set(
        re.findall(r"^::: diffeo\.([\w.]+)$", "\n".join(p.read_text() for p in API.glob("*.md")), re.MULTILINE)
    )
    assert "transforms.univariate" in listed  # which lists all scalar maps
    listed |= {*diffeo.transforms.univariate.__all__}
    modules = {"apps", "interop", "nets", "plotting", "tables", "testing", "training"}
    public = {name for name in dir(diffeo) if not name.startswith("_") and name[0].isalpha()}
    hidden = {n for n in public if isinstance(getattr(diffeo, n), ModuleType)} - modules
    hidden |= {"annotations", "Any", "TYPE_CHECKING", "import_module"}
    assert {n for n in public - hidden if n not in listed and not any(x.startswith(f"{n}.") for x in listed)} == set()
    for name in listed:
        value, path = diffeo, "diffeo"
        for part in name.split("."):
            path = f"{path}.{part}"
            value = getattr(value, part, None) or importlib.import_module(path)


def test_the_tutorials_are_executed():
    """Every code cell of every notebook has run, without an error, and says what its source says."""
    sources = sorted((ROOT / "docs" / "notebooks").glob("*.py"))
    assert len(sources) == 9
    for source in sources:
        cells = json.loads(source.with_suffix(".ipynb").read_text())["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        assert code
        assert all(cell["execution_count"] for cell in code)
        assert not any(output["output_type"] == "error" for cell in code for output in cell["outputs"])
        assert ["".join(cell["source"]) for cell in cells] == notebook_cells(source.read_text()), source.name


def notebook_cells(script: str) -> list[str]:
    """What each cell of a script in jupytext's percent format says in the notebook."""
    kinds = re.findall(r"^# %%(.*)\n", script, re.MULTILINE)
    cells = []
    for kind, cell in zip(kinds, re.split(r"^# %%.*\n", script, flags=re.MULTILINE)[1:], strict=True):
        commented = r"^# ?" if "markdown" in kind else r"^# (?=%)"
        cells.append(re.sub(commented, "", cell.strip("\n"), flags=re.MULTILINE))
    return cells


def test_the_transform_in_contributing_keeps_the_contract(tmp_path, monkeypatch):
    (tmp_path / "softsign.py").write_text(blocks("CONTRIBUTING.md")[0])
    monkeypatch.syspath_prepend(tmp_path)
    check_transform(importlib.import_module("softsign").Softsign(), torch.randn(6))


def test_links_between_the_documents_lead_somewhere():
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for link in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            if not link.startswith("http"):
                assert (path.parent / link).exists(), f"{path.name}: {link}"


def test_the_table_of_options_names_what_there_is():
    from typer.main import get_command

    from diffeo.cli.app import app

    section = (ROOT / "docs" / "program.md").read_text().partition("## The same options by three names")[2]
    rows = [line.split("|")[2:5] for line in section.splitlines() if line.startswith("| ") and "---" not in line][1:]
    assert len(rows) > 10
    named = [set(re.findall(r"`([^`]+)`", " ".join(column))) for column in zip(*rows, strict=True)]
    functions = {n for f in (diffeo.fit, diffeo.fit_table) for n in inspect.signature(f).parameters}
    estimator = {
        *inspect.signature(diffeo.FlowDensity).parameters,
        *inspect.signature(diffeo.FlowDensity.fit).parameters,
    }
    fit = get_command(app).commands["fit"]
    for names, there in zip(named, (functions, estimator, {o for p in fit.params for o in p.opts}), strict=True):
        assert names <= there, names - there
