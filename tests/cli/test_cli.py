"""The program: what it writes, and every wrong input as one plain line with exit code 2 and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

import diffeo
from diffeo.cli import main
from diffeo.cli.app import recipe_options


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(120, 3)), columns=["a", "b", "c"])
    frame["b"] += frame["a"] ** 2
    frame.to_csv(path / "table.csv", index=False)
    frame.to_parquet(path / "table.parquet")
    assert main(["fit", str(path / "table.csv"), "-o", str(path / "m.safetensors"), "--epochs", "3"]) == 0
    return path


def test_fit_prints_scores_beside_baselines(folder, capsys):
    assert (
        main(
            [
                "fit",
                str(folder / "table.parquet"),
                "-o",
                str(folder / "p.safetensors"),
                "--recipe",
                "maf",
                "--epochs",
                "10",
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert all(name in out for name in ("maf", "Gaussian ", "Gaussian mixture", "KDE", "Wrote"))
    assert not (folder / "p.safetensors.ckpt").exists()


def test_score_and_sample_round_trip(folder, capsys):
    model = str(folder / "m.safetensors")
    assert main(["sample", model, "-n", "7", "--seed", "1", "-o", str(folder / "s.csv")]) == 0
    assert main(["sample", model, "-n", "7", "--seed", "1"]) == 0
    assert capsys.readouterr().out == (folder / "s.csv").read_text()
    assert list(pd.read_csv(folder / "s.csv").columns) == ["a", "b", "c"]
    shuffled = pd.read_csv(folder / "table.csv")[["c", "a", "b"]].assign(more=1.0)
    shuffled.to_csv(folder / "shuffled.csv", index=False)
    assert main(["score", model, str(folder / "shuffled.csv"), "-o", str(folder / "o.parquet")]) == 0
    assert main(["score", model, str(folder / "table.csv"), "-o", str(folder / "o.csv")]) == 0
    scores = pd.read_csv(folder / "o.csv")["log_density"]
    assert np.allclose(scores, pd.read_parquet(folder / "o.parquet")["log_density"])
    far = pd.DataFrame({"a": [50.0], "b": [-50.0], "c": [0.0]})
    far.to_csv(folder / "far.csv", index=False)
    assert main(["score", model, str(folder / "far.csv")]) == 0
    log_p, percentile, reason = capsys.readouterr().out.splitlines()[1].split(",")
    assert reason in ("", '""')
    assert float(log_p) < scores.min()
    assert float(percentile) == 0.0


def test_info(folder, capsys):
    assert main(["info", str(folder / "m.safetensors")]) == 0
    out = capsys.readouterr().out
    assert "flow        nsf_ar()" in out
    assert "columns     a: continuous" in out


def test_a_csv_without_header(folder, capsys):
    np.savetxt(folder / "plain.csv", np.random.default_rng(0).normal(size=(40, 2)), delimiter=",")
    assert main(["fit", str(folder / "plain.csv"), "-o", str(folder / "h.safetensors"), "--epochs", "1"]) == 0
    main(["info", str(folder / "h.safetensors")])
    assert "x1: continuous" in capsys.readouterr().out


def test_options_of_recipes_are_json_or_pythons_constants():
    found = recipe_options(["peak=None", "layers=3", "couplings=[4, 2]", "univariate=Affine", "attention=False"])
    assert found == {"peak": None, "layers": 3, "couplings": [4, 2], "univariate": "Affine", "attention": False}


HEADER = "a,b\n"
ROWS = "".join(f"{i * 0.37 % 1},{i * 0.73 % 1}\n" for i in range(40))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "the file is empty"),
        (HEADER.encode(), "a header but no rows"),
        ((HEADER + "1,2\n").encode(), "at least 20"),
        (
            (HEADER + ROWS + "x,1\n").encode(),
            "but for 1 of 41 rows with 'x', first in row 41",
        ),
        ((HEADER + ROWS + ",1\n").encode(), "missing or infinite values ('a': 1)"),
        ((HEADER + ROWS + "inf,1\n").encode(), "missing or infinite"),
        ((HEADER + ROWS + "1,2,3\n").encode(), "do not all fit the header"),
        (("a,a\n" + ROWS).encode(), "'a' stands more than once"),
        (("a,b\n" + "1,2\n" * 30).encode(), "no column to model: all are constant"),
        ((HEADER + "1,2\n3,4\n").encode(), "2 rows; a density needs at least 20"),
        (bytes(range(256)) * 20, "not a text table"),
        ((HEADER + "".join(f"{i / 7},id{i}\n" for i in range(40))).encode(), "'b': text with 40 distinct values in 40"),
        (b"\n\n", "the file is empty"),
    ],
)
def test_bad_tables(folder, tmp_path, capsys, text, message):
    table, output = tmp_path / "bad.csv", tmp_path / "out.safetensors"
    table.write_bytes(text)
    output.write_text("precious")
    assert main(["fit", str(table), "-o", str(output)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert output.read_text() == "precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.csv", "out.safetensors"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fit", "nothing.csv"], "no such file"),
        (["fit", "{folder}"], "a directory"),
        (["fit", "{folder}/table.csv", "-o", "{folder}/no/m.safetensors"], "does not exist"),
        (["fit", "{folder}/table.csv", "-o", "{folder}/m.bin"], "ends in .safetensors"),
        (["fit", "{folder}/table.csv", "--recipe", "nope"], "there are autoregressive_flow, bernstein, "),
        (["fit", "{folder}/table.csv", "--option", "nope=1"], "nsf_ar takes no option 'nope'; it takes layers, "),
        (["fit", "{folder}/table.csv", "--option", "context=1"], "nsf_ar takes no option 'context'; it takes layers, "),
        (["fit", "{folder}/table.csv", "--epochs", "0"], "--epochs"),
        (["fit", "{folder}/table.csv", "--time-limit", "soon"], "such as 90s, 5m or 1h"),
        (["fit", "{folder}/table.csv", "-o", "{folder}/m.safetensors", "--resume"], "no interrupted fit"),
        (["fit", "{folder}/m.safetensors"], "expected a table with one of the endings"),
        (["fit"], "Missing argument"),
        (["fit", "{folder}/table.csv", "--seed", "-1"], "--seed"),
        (["nonsense"], "No such command"),
        (["sample", "{folder}/m.safetensors", "-n", "-1"], "at least 1"),
        (["sample", "{folder}/m.safetensors", "-n", "many"], "-n"),
        (["sample", "{folder}/none.safetensors", "-n", "1"], "no such file"),
        (["sample", "{folder}/table.csv", "-n", "1"], "not a model file"),
        (["score", "{folder}/m.safetensors", "{folder}/s2.csv"], "needs a column 'b'"),
        (["score", "{folder}/m.safetensors", "{folder}/fake.parquet"], "not a Parquet file"),
        (["info", "{folder}/table.parquet"], "not a model file"),
    ],
)
def test_bad_calls(folder, capsys, args, message):
    (folder / "s2.csv").write_text("a,c\n1,2\n")
    (folder / "fake.parquet").write_text("no parquet")
    before = sorted(p.name for p in folder.iterdir())
    assert main([a.format(folder=folder) for a in args]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    assert sorted(p.name for p in folder.iterdir()) == before


def test_weights_of_rows(tmp_path, capsys):
    side = np.repeat([-2.0, 2.0], 150)
    rows = pd.DataFrame({"a": side + 0.5 * np.random.default_rng(0).normal(size=300), "w": np.where(side > 0, 1, 0.01)})
    rows.to_csv(tmp_path / "t.csv", index=False)
    model = tmp_path / "m.safetensors"
    call = ["fit", str(tmp_path / "t.csv"), "-o", str(model), "--recipe", "gaussian", "--epochs", "3"]
    assert main([*call, "--weights", "w"]) == 0
    assert "KDE" not in capsys.readouterr().out
    assert diffeo.load(model).sample(500, seed=0)["a"].mean() > 1
    assert main([*call, "--weights", "nothing"]) == 2
    assert "no column 'nothing'" in capsys.readouterr().err
    assert main([*call, "--weights", "a"]) == 2
    assert "at least 0" in capsys.readouterr().err


def test_an_atom_is_a_kind_of_its_own(tmp_path, capsys):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=60), "spike": np.r_[np.zeros(20), rng.normal(size=40)]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    main(["fit", str(tmp_path / "t.csv"), "-o", str(tmp_path / "m.safetensors"), "--epochs", "1"])
    assert "spike  0 or continuous" in capsys.readouterr().out
    assert main(["sample", str(tmp_path / "m.safetensors"), "-n", "300", "-o", str(tmp_path / "s.csv")]) == 0
    assert 0.2 < (pd.read_csv(tmp_path / "s.csv")["spike"] == 0).mean() < 0.45


def test_an_interrupt_says_how_to_resume_and_resuming_finishes(folder, tmp_path, capsys):
    output = str(tmp_path / "m.safetensors")
    command = ["fit", str(folder / "table.csv"), "-o", output, "--recipe", "maf", "--epochs", "500"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    # a job in the background may have been started with interrupts ignored, which its children inherit
    unblock = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    program = [sys.executable, "-m", "diffeo.cli", *command]
    fit = subprocess.Popen(program, stderr=subprocess.PIPE, text=True, env=env, preexec_fn=unblock)
    deadline = time.monotonic() + 90
    while not (tmp_path / "m.safetensors.ckpt" / "fit.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)
    fit.send_signal(signal.SIGINT)
    _, err = fit.communicate(timeout=60)
    assert fit.returncode == 130
    assert "--epochs 500 --resume" in err
    assert (tmp_path / "m.safetensors.ckpt" / "fit.safetensors").exists()
    assert main(command) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_an_output_never_overwrites_an_input(folder, capsys):
    text = (folder / "table.csv").read_text()
    assert (
        main(["score", str(folder / "m.safetensors"), str(folder / "table.csv"), "-o", str(folder / "table.csv")]) == 2
    )
    assert "would overwrite an input" in capsys.readouterr().err
    assert (folder / "table.csv").read_text() == text


@pytest.mark.parametrize("start", ["\ufeff", "\n"])
def test_a_headerless_csv_keeps_its_first_row(tmp_path, capsys, start):
    (tmp_path / "t.csv").write_text(start + ROWS, encoding="utf-8")
    assert main(["fit", str(tmp_path / "t.csv"), "-o", str(tmp_path / "m.safetensors"), "--epochs", "1"]) == 0
    main(["info", str(tmp_path / "m.safetensors")])
    assert "32 train, 4 validation, 4 test" in capsys.readouterr().out
    (tmp_path / "gap.csv").write_text("0.5,\n" + ROWS)
    assert main(["fit", str(tmp_path / "gap.csv"), "-o", str(tmp_path / "g.safetensors")]) == 2
    assert "missing or infinite values ('x1': 1)" in capsys.readouterr().err


def test_info_on_a_model_from_python(tmp_path, capsys):
    import diffeo

    diffeo.save(diffeo.maf(2), tmp_path / "m.safetensors")
    assert main(["info", str(tmp_path / "m.safetensors")]) == 0
    assert capsys.readouterr().out.startswith("flow        maf(features=2, ")
    assert main(["sample", str(tmp_path / "m.safetensors"), "-n", "1"]) == 2
    assert "a density of tensors" in capsys.readouterr().err


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("diffeo 0")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    path = tmp_path_factory.mktemp("mixed")
    rng = np.random.default_rng(0)
    n = 150
    frame = pd.DataFrame(
        {
            "shop": rng.choice(["Rome", "Oslo"], n),
            "open": rng.random(n) < 0.5,
            "items": rng.poisson(3, n),
            "price": np.round(rng.lognormal(2, 0.5, n), 2),
            "day": pd.Timestamp("2026-01-01") + pd.to_timedelta(rng.integers(0, 60, n), "D"),
            "currency": "EUR",
        }
    )
    frame.to_csv(path / "t.csv", index=False)
    frame.to_csv(path / "t.tsv", index=False, sep="\t")
    frame.to_csv(path / "t.csv.gz", index=False)
    frame.to_parquet(path / "t.parquet")
    frame.to_feather(path / "t.feather")
    frame.to_json(path / "t.jsonl", orient="records", lines=True, date_format="iso")
    assert main(["fit", str(path / "t.csv"), "-o", str(path / "m.safetensors"), "--epochs", "2"]) == 0
    return path


FORMATS = ["csv", "tsv", "csv.gz", "parquet", "feather", "jsonl"]


@pytest.mark.parametrize("ending", FORMATS)
def test_every_format_gives_the_same_scores(mixed, tmp_path, ending):
    out = tmp_path / f"s.{ending}"
    assert main(["score", str(mixed / "m.safetensors"), str(mixed / f"t.{ending}"), "-o", str(out), "--keep"]) == 0
    readers = {"parquet": pd.read_parquet, "feather": pd.read_feather, "tsv": lambda p: pd.read_csv(p, sep="\t")}
    read = readers.get(ending, lambda p: pd.read_json(p, lines=True) if ending == "jsonl" else pd.read_csv(p))
    scored = read(out)
    assert list(scored.columns) == [
        "shop",
        "open",
        "items",
        "price",
        "day",
        "currency",
        "log_density",
        "percentile",
        "reason",
    ]
    expected = diffeo.load(mixed / "m.safetensors").log_prob(pd.read_parquet(mixed / "t.parquet"))
    assert np.allclose(scored["log_density"], expected, atol=1e-9)
    assert scored["percentile"].between(0, 100).all()
    again = tmp_path / f"samples.{ending}"
    assert main(["sample", str(mixed / "m.safetensors"), "-n", "30", "-o", str(again)]) == 0
    assert main(["score", str(mixed / "m.safetensors"), str(again)]) == 0  # samples are a table like the first


def test_blocks_are_scored_as_the_whole_is(mixed, tmp_path, monkeypatch):
    from diffeo.cli import files

    whole, blocks = tmp_path / "whole.csv", tmp_path / "blocks.csv"
    model, table = str(mixed / "m.safetensors"), str(mixed / "t.csv")
    assert main(["score", model, table, "-o", str(whole)]) == 0
    real = files.read_blocks
    seen = []

    def small(path, rows=7, text=(), **how):
        for block in real(path, 7, text, **how):
            seen.append(len(block))
            yield block

    monkeypatch.setattr("diffeo.cli.use.read_blocks", small)
    assert main(["score", model, table, "-o", str(blocks)]) == 0
    assert set(seen) == {7, 3}
    assert np.allclose(pd.read_csv(whole).iloc[:, :2], pd.read_csv(blocks).iloc[:, :2], atol=1e-9)


def test_a_pipe(mixed, capfd):
    text = (mixed / "t.csv").read_bytes()
    run = [sys.executable, "-m", "diffeo.cli", "score", str(mixed / "m.safetensors"), "-"]
    done = subprocess.run(run, input=text, capture_output=True, check=False)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 151


def test_given_and_drop(mixed, tmp_path, capsys):
    model = str(tmp_path / "g.safetensors")
    fit = ["fit", str(mixed / "t.parquet"), "-o", model, "--epochs", "2", "--given", "shop", "--given", "items"]
    assert main([*fit, "--drop", "day", "--drop", "currency"]) == 0
    assert "independent of the categories" in capsys.readouterr().out
    assert main(["sample", model, "-n", "4", "--given", "shop=Oslo", "--given", "items=7"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "shop,open,items,price"
    assert all(line.startswith("Oslo,") and ",7," in line for line in lines[1:])
    for wrong, message in (
        (["--given", "shop=Oslo"], "needs a value of 'items'"),
        (["--given", "shop=Oslo", "--given", "shop=Rome", "--given", "items=1"], "two values"),
        (["--given", "shop=Lima", "--given", "items=1"], "never occurred"),
        (["--given", "shop=Oslo", "--given", "items=few"], "expected a number"),
        (["--given", "price=3"], "no given column"),
        (["--given", "shop"], "expected column=value"),
        ([], "needs a value of 'shop'"),
    ):
        assert main(["sample", model, "-n", "2", *wrong]) == 2
        assert message in capsys.readouterr().err
    for flag in ("--given", "--drop"):
        assert main([*fit[:4], flag, "nope"]) == 2
        assert "has no column 'nope'" in capsys.readouterr().err
    assert main([*fit[:4], "--given", "shop", "--drop", "shop"]) == 2


def test_report_and_recipes(mixed, tmp_path, capsys):
    page = tmp_path / "r.html"
    assert main(["report", str(mixed / "m.safetensors"), str(mixed / "t.csv"), "-o", str(page)]) == 0
    assert "The most unusual rows" in page.read_text()
    assert main(["report", str(mixed / "m.safetensors"), str(mixed / "t.csv"), "-o", str(tmp_path / "r.txt")]) == 2
    assert main(["recipes"]) == 0
    assert "nsf_ar" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="price"), "needs a column 'price'"),
        (lambda t: t.assign(items="many"), "column 'items': expected numbers"),
        (lambda t: t.assign(day=3), "column 'day': expected dates"),
        (lambda t: t.iloc[:0], "a header but no rows"),
    ],
)
def test_bad_tables_at_score_time(mixed, tmp_path, capsys, change, message):
    change(pd.read_parquet(mixed / "t.parquet")).to_csv(tmp_path / "bad.csv", index=False)
    args = ["score", str(mixed / "m.safetensors"), str(tmp_path / "bad.csv"), "-o", str(tmp_path / "out.csv")]
    assert main(args) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.csv"]


def test_model_files_that_are_none(mixed, tmp_path, capsys):
    from safetensors.numpy import save_file

    good = (mixed / "m.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(good[: len(good) // 2])
    (tmp_path / "flipped.safetensors").write_bytes(good[:-100] + bytes([good[-100] ^ 1]) + good[-99:])
    save_file({"x": np.zeros(3)}, tmp_path / "foreign.safetensors")
    for name, message in (("cut", "truncated"), ("flipped", "checksum"), ("foreign", "not one that diffeo wrote")):
        assert main(["info", str(tmp_path / f"{name}.safetensors")]) == 2
        assert message in capsys.readouterr().err


def test_text_that_looks_numeric_in_a_block(tmp_path):
    """Levels are text if any row's is, however a block of the file looks."""
    from diffeo.cli.files import read_blocks, read_table

    path = tmp_path / "t.csv"
    path.write_text("code,x\n" + "".join(f"0{i % 3},{i}\n" for i in range(30)) + "U,1\n")
    table = read_table(path)
    assert set(table["code"]) == {"00", "01", "02", "U"}
    blocks = list(read_blocks(path, rows=10, text=["code"]))
    assert [set(b["code"]) for b in blocks] == [{"00", "01", "02"}] * 3 + [{"U"}]
