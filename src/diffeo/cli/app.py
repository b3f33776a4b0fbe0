"""The commands. Errors are one plain line on stderr and exit code 2; an interrupt is 130."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="diffeo",
    help="Densities of tables: fit a normalizing flow, score rows, draw samples.",
    no_args_is_help=True,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

MODEL = ".safetensors"
KDE_ROWS = 20_000  # training rows that the program's KDE baseline uses at most
BLOCK = 8192  # rows scored or drawn at once


def main(args: list[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    # older Typer stands on click, newer brings its own copy: the base class of its errors, wherever it comes from
    usage_error: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
    try:
        return int(app(args, standalone_mode=False) or 0)
    except typer.Exit as stop:
        return stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print("diffeo: interrupted", file=sys.stderr)
        return 130
    except usage_error as error:
        message = error.format_message()
    except (ValueError, OSError, ArithmeticError, RuntimeError) as error:
        message = str(error).removeprefix("fit: ") or type(error).__name__
    if message:
        print("diffeo: " + " ".join(message.split()), file=sys.stderr)
    return 2


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Densities of tables: fit a normalizing flow, score rows, draw samples."""
    if version:
        from diffeo.version import __version__

        print(f"diffeo {__version__}")
        raise typer.Exit


@app.command(epilog="Example:  diffeo fit measurements.csv -o measurements.safetensors --time-limit 5m")
def fit(
    table: Annotated[Path, typer.Argument(help="CSV or Parquet file of numbers.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="Model file to write.")] = Path("model.safetensors"),
    recipe: Annotated[
        str, typer.Option(help="Which flow: gaussian, nice, realnvp, maf, iaf, nsf or nsf_ar.")
    ] = "nsf_ar",
    epochs: Annotated[int | None, typer.Option(help="Passes over the rows.", show_default="by size")] = None,
    time_limit: Annotated[
        str | None, typer.Option(help="Training time, as 90s, 5m or 1h.", show_default="none")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of split, weights and batches.", min=0, max=2**32 - 1)] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted fit.")] = False,
) -> None:
    """Fit a density to a table and print its score on held-out rows beside simple baselines."""
    from diffeo.cli.files import check_output, numbers, read_table
    from diffeo.recipes import find_recipe
    from diffeo.training import checkpoint as checkpoints

    check_output(output, (MODEL,), table)
    build = find_recipe(recipe)
    seconds = None if time_limit is None else parse_duration(time_limit)
    frame = numbers(read_table(table), table)
    folder = output.with_name(output.name + ".ckpt")
    if folder.exists() and not resume and any(folder.iterdir()):
        raise ValueError(f"{folder} holds an interrupted fit: add --resume to continue it, or delete the folder")
    if resume and not folder.exists():
        raise ValueError(f"{folder}: no interrupted fit to resume")
    names = [str(c) for c in frame.columns]
    rows = frame.to_numpy()
    if len(rows) < 20:
        raise ValueError(f"{table}: {len(rows)} row{'s' * (len(rows) != 1)}; a density needs at least 20")
    parts = _split(rows, seed)
    _check_columns(table, names, parts[2])
    _warn_of_atoms(names, rows)
    try:
        _fit(build, parts, names, output, folder, epochs, seconds, seed, resume)
    except KeyboardInterrupt:
        words = [_program(), "fit", str(table), "-o", str(output), "--recipe", recipe, "--seed", str(seed)]
        words += ["--epochs", str(epochs)] if epochs else []
        words += ["--time-limit", time_limit] if time_limit else []
        again = shlex.join([*words, "--resume"]) if (folder / checkpoints.NAME).exists() else "the same command"
        print(f"diffeo: interrupted; continue with: {again}", file=sys.stderr)
        raise typer.Exit(130) from None


def _fit(build, parts, names, output, folder, epochs, seconds, seed, resume) -> None:
    import torch

    import diffeo
    from diffeo.baselines import score_baselines

    test, validation, train = parts
    torch.manual_seed(seed)
    flow = build(len(names))
    result = diffeo.fit(
        flow,
        train,
        validation=validation,
        epochs=epochs,
        time_limit=seconds,
        seed=seed,
        checkpoint=folder,
        resume=resume,
    )
    log_p = score(flow, test)
    nats, stderr = float(log_p.mean()), float(log_p.std() / len(log_p) ** 0.5)
    others = score_baselines(train, validation, test, kde_rows=KDE_ROWS, cross_validate=True, seed=seed)
    told = {
        "columns": names,
        "rows": {"train": len(train), "validation": len(validation), "test": len(test)},
        "test_nats": nats,
        "test_stderr": stderr,
        "baselines": {b.name: b.nats for b in others},
        "fit": {"steps": result.steps, "seconds": round(result.seconds, 1), "stopped": result.stopped},
    }
    diffeo.save(flow, output, notes=told)
    shutil.rmtree(folder, ignore_errors=True)
    why = {"steps": "as planned", "patience": "no better on held-out rows", "time_limit": "time limit reached"}
    print(f"{result.steps} steps on {len(train)} rows in {result.seconds:.0f} s ({why[result.stopped]}).")
    print(f"Mean log-density of {len(test)} test rows, in nats (higher is better):")
    scores = [(flow.recipe.name, nats, stderr, "this flow"), *others]
    for name, value, error, choice in scores:
        print(f"  {name:<18}{value:>10.3f} ± {error:.3f}   {choice}")
    print(f"Wrote {output}.  Next:")
    print("  " + shlex.join([_program(), "sample", str(output), "-n", "5"]))
    print("  " + shlex.join([_program(), "score", str(output)]) + " TABLE")


@app.command("score", epilog="Example:  diffeo score model.safetensors new.csv -o scores.csv")
def score_command(
    model: Annotated[Path, typer.Argument(help="Model file.", show_default=False)],
    table: Annotated[Path, typer.Argument(help="CSV or Parquet file with the model's columns.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="CSV or Parquet to write.", show_default="standard output")
    ] = None,
) -> None:
    """Write the log-density of every row, in nats: the lower, the more unusual."""
    import pandas as pd

    from diffeo.cli.files import SUFFIXES, check_output, numbers, read_table, write_table

    check_output(output, SUFFIXES, model, table)
    flow, notes = _load(model)
    frame = read_table(table)
    frame.columns = [str(c) for c in frame.columns]
    missing = [name for name in notes["columns"] if name not in frame.columns]
    if missing:
        headerless = all(name == f"x{i}" for i, name in enumerate(frame.columns))
        hint = "; its first line is all numbers, so it counts as having no header" if headerless else ""
        raise ValueError(f"{table}: the model needs a column {missing[0]!r}, which the table lacks{hint}")
    rows = numbers(frame.loc[:, notes["columns"]], table).to_numpy()
    write_table(pd.DataFrame({"log_density": score(flow, rows)}), output)


@app.command(epilog="Example:  diffeo sample model.safetensors -n 1000 --seed 1 -o samples.csv")
def sample(
    model: Annotated[Path, typer.Argument(help="Model file.", show_default=False)],
    n: Annotated[int, typer.Option("-n", help="Number of rows, at least 1.", show_default=False)],
    seed: Annotated[int, typer.Option(help="Seed of the random numbers.", min=0, max=2**63 - 1)] = 0,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="CSV or Parquet to write.", show_default="standard output")
    ] = None,
) -> None:
    """Draw rows from the model, in the units of its table."""
    import pandas as pd
    import torch

    from diffeo.cli.files import SUFFIXES, check_output, write_table

    if n < 1:
        raise ValueError(f"-n: expected at least 1 row, got {n}")
    check_output(output, SUFFIXES, model)
    flow, notes = _load(model)
    generator = torch.Generator().manual_seed(seed)
    blocks = [flow.sample(min(BLOCK, n - start), generator=generator) for start in range(0, n, BLOCK)]
    write_table(pd.DataFrame(torch.cat(blocks).numpy(), columns=notes["columns"]), output)


@app.command(epilog="Example:  diffeo info model.safetensors")
def info(model: Annotated[Path, typer.Argument(help="Model file.", show_default=False)]) -> None:
    """Print what a model file holds."""
    flow, notes = _load(model)
    arguments = ", ".join(f"{k}={v}" for k, v in notes["arguments"].items())
    parameters = sum(p.numel() for p in flow.parameters())
    rows, done = notes.get("rows"), notes.get("fit")
    print(f"recipe      {notes['recipe']}({arguments})")
    print(f"columns     {', '.join(notes['columns'])}")
    print(f"parameters  {parameters:,}")
    if rows and done:  # what `diffeo fit` notes
        print(f"rows        {rows['train']} train, {rows['validation']} validation, {rows['test']} test")
        print(f"fit         {done['steps']} steps, {done['seconds']} s")
        print(f"test        {notes['test_nats']:.3f} ± {notes['test_stderr']:.3f} nats per row")
        for name, nats in notes["baselines"].items():
            print(f"            {nats:.3f} {name}")
    print(f"written by  diffeo {notes['diffeo']}, torch {notes['torch']}")


def score(flow, rows):
    """Log-density of rows as a NumPy array, in float64 and in blocks."""
    import copy

    import torch

    exact = copy.deepcopy(flow).double().eval()
    with torch.inference_mode():
        return torch.cat([exact(block) for block in torch.from_numpy(rows).split(BLOCK)]).numpy()


def _program() -> str:
    """The program as the user can call it again."""
    return "diffeo" if shutil.which("diffeo") else sys.argv[0]


def parse_duration(text: str) -> float:
    """Seconds of a duration such as 90, 90s, 5m or 1.5h."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
    try:
        seconds = float(number) * units[unit]
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"--time-limit: expected a duration such as 90s, 5m or 1h, got {text!r}")
    return seconds


def _load(model: Path):
    """A model that this program wrote, and its notes."""
    import diffeo
    from diffeo.recipes import read_notes

    flow, notes = diffeo.load(model), read_notes(model)
    if "columns" not in notes:
        raise ValueError(f"{model}: a model without column names; the program reads what `diffeo fit` wrote")
    return flow, notes


def _split(rows, seed: int):
    """Test, validation and training rows: a tenth, a tenth, and the rest."""
    import numpy as np

    order = np.random.default_rng(seed).permutation(len(rows))
    tenth = max(1, len(rows) // 10)
    return rows[order[:tenth]], rows[order[tenth : 2 * tenth]], rows[order[2 * tenth :]]


def _check_columns(table: Path, names: list[str], train) -> None:
    """Refuse, by name, columns whose training rows have no density that float32 could hold."""
    import torch

    from diffeo.training.data import indistinct_columns

    for name, column in zip(names, train.T, strict=True):
        if column.min() == column.max():
            raise ValueError(f"{table}: column {name!r} is constant, so it has no density; drop it first")
    for i in indistinct_columns(torch.from_numpy(train), torch.float32):
        raise ValueError(
            f"{table}: column {names[i]!r} varies too little around a large value for float32; subtract an offset first"
        )


def _warn_of_atoms(names: list[str], rows) -> None:
    import numpy as np

    for name, column in zip(names, rows.T, strict=True):
        values, counts = np.unique(column, return_counts=True)
        if counts.max() > 0.05 * len(column):
            print(
                f"diffeo: warning: column {name!r} holds {values[counts.argmax()]:g} in "
                f"{counts.max() / len(column):.0%} of the rows; a density grows without bound at such a value, "
                "so scores say little about this column",
                file=sys.stderr,
            )
