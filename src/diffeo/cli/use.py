"""`diffeo score`, `explain`, `sample`, `info` and `recipes`: what one does with a model file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from diffeo.cli.app import Decimal, Header, Missing, Separator, app, load_model
from diffeo.cli.cells import Dialect
from diffeo.cli.files import WRITTEN, Writer, check_input, check_output, opened, read_blocks

DRAWN = 8192  # rows drawn at once
GONE = "missing or infinite"
ModelFile = Annotated[Path, typer.Argument(help="Model file.", show_default=False)]
TableFile = Annotated[
    Path, typer.Argument(help="Table with the model's columns; - for CSV from a pipe.", show_default=False)
]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o", "--output", help="Table to write; its ending says the format.", show_default="CSV to standard output"
    ),
]


@app.command(epilog="Example:  diffeo score patients.safetensors new.parquet -o scores.parquet")
def score(
    model: ModelFile,
    table: TableFile,
    output: Output = None,
    keep: Annotated[bool, typer.Option("--keep", help="Write the table's columns too.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at a row that cannot be scored.")] = False,
    sep: Separator = None,
    decimal: Decimal = None,
    header: Header = None,
    na: Missing = None,
) -> None:
    """Write how likely every row is. As a log-density in nats, and as its percentile among held-out rows.

    The lower, the more unusual: percentile 0 is below every held-out row. A row with a missing value has no score, one
    that the table could not hold has −inf; the column `reason` says why. The table is read, scored and written a block
    of rows at a time.
    """
    import pandas as pd

    dialect = Dialect(sep, decimal, header, tuple(na or ())).checked()
    check_output(output, WRITTEN, model, table)
    density = load_model(model)
    unscored = 0
    with opened(table) as path:
        check_input(path)
        with Writer(output) as writer:
            for block in read_blocks(path, text=density.text_columns, dialect=dialect):
                if all(name in block for name in density.columns):
                    new = [name for name in ("log_density", "percentile", "reason") if keep and name in block]
                    if new:
                        raise ValueError(f"{table}: it has a column {new[0]!r} already; leave out --keep")
                try:
                    log_p, reason = _scored(density, block, strict)
                except ValueError as error:
                    raise ValueError(f"{table}: {error}{_headerless(block, error)}") from error
                unscored += int((reason != "").sum())
                scores = pd.DataFrame({"log_density": log_p, "percentile": density.percentile(log_p), "reason": reason})
                scores.loc[log_p.isna(), "percentile"] = None
                writer.write(pd.concat([block, scores], axis=1) if keep else scores)
    if unscored:
        print(f"diffeo: {unscored} rows without a finite score; the column reason says why", file=sys.stderr)


def _scored(density: Any, block: Any, strict: bool) -> tuple[Any, Any]:
    """Log-density of each row and why it is none: missing where something is missing, −inf where nothing like it is."""
    import numpy as np
    import pandas as pd

    if strict:
        return density.log_prob(block), pd.Series("", index=block.index)
    block, reason = density.schema.screen(block)
    log_p = pd.Series(np.where(reason.str.endswith(GONE), np.nan, -np.inf), index=block.index)
    fine = (reason == "").to_numpy()
    if fine.any():
        log_p[fine] = density.log_prob(block[fine])
    return log_p, reason


@app.command(epilog="Example:  diffeo explain patients.safetensors unusual.csv")
def explain(
    model: ModelFile,
    table: TableFile,
    output: Output = None,
    sep: Separator = None,
    decimal: Decimal = None,
    header: Header = None,
    na: Missing = None,
) -> None:
    """Write how surprising every value is. In nats, given the rest of its row.

    0 on average, large where a value does not go with the others, inf where its column cannot hold it.
    """
    dialect = Dialect(sep, decimal, header, tuple(na or ())).checked()
    check_output(output, WRITTEN, model, table)
    density = load_model(model)
    with opened(table) as path:
        check_input(path)
        with Writer(output) as writer:
            for block in read_blocks(path, text=density.text_columns, dialect=dialect):
                try:
                    writer.write(density.explain(block))
                except ValueError as error:
                    raise ValueError(f"{table}: {error}{_headerless(block, error)}") from error


def _headerless(block: Any, error: ValueError) -> str:
    """What to add to an error about a table that was read without a header."""
    lacks = "which the table lacks" in str(error) and all(name == f"x{i}" for i, name in enumerate(block.columns))
    return "; its first line looks like a row, so it counts as having no header (--header)" if lacks else ""


@app.command(epilog="Example:  diffeo sample patients.safetensors -n 1000 --given sex=female --seed 1 -o samples.csv")
def sample(
    model: ModelFile,
    n: Annotated[int, typer.Option("-n", help="Number of rows, at least 1.", show_default=False)],
    given: Annotated[
        list[str] | None,
        typer.Option(help="Value of a given column, as column=value; repeat for more.", show_default=False),
    ] = None,
    temperature: Annotated[
        float, typer.Option(help="Below 1 for rows nearer to the mode, above for more varied ones.", min=0.0)
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the random numbers.", min=0, max=2**63 - 1)] = 0,
    output: Output = None,
) -> None:
    """Draw rows from the model. They have the columns, categories, ranges and rounding of its table."""
    import torch

    if n < 1:
        raise ValueError(f"-n: expected at least 1 row, got {n}")
    check_output(output, WRITTEN, model)
    density = load_model(model)
    values = _values(density, given or [])
    generator = torch.Generator().manual_seed(seed)
    with Writer(output) as writer:
        for start in range(0, n, DRAWN):
            size = min(DRAWN, n - start)
            writer.write(density.sample(size, values, temperature=temperature, seed=generator))


def _values(density: Any, given: list[str]) -> dict[str, Any] | None:
    """The given values of a conditional model, each as its column holds it."""
    values = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--given: expected column=value, got {text!r}")
        if name not in density.schema.given:
            known = ", ".join(map(str, density.schema.given))
            raise ValueError(f"--given: {name!r} is no given column of this model; " + (known or "it has none"))
        if name in values:
            raise ValueError(f"--given: {name!r} has two values; a column takes one")
        values[name] = density.schema.column(name).parse(value)
    lacking = [name for name in density.schema.given if name not in values]
    if lacking:
        raise ValueError(
            f"--given: this model is conditional and needs a value of {lacking[0]!r}: --given {lacking[0]}=…"
        )
    return values or None


@app.command(epilog="Example:  diffeo info patients.safetensors")
def info(model: ModelFile) -> None:
    """Print what a model file holds: of a table, of pictures, a voice or a vocoder."""
    import diffeo
    from diffeo.recipes import read_notes
    from diffeo.tables import TableDensity

    loaded = diffeo.load(model)
    if not isinstance(loaded, TableDensity):
        _tell(loaded, read_notes(model))
        return
    density = loaded
    notes = density.notes
    parameters = sum(p.numel() for p in density.density.parameters())
    options = ", ".join(f"{k}={v}" for k, v in read_notes(model)["arguments"]["options"].items())
    print(f"flow        {notes['flow']}({options}), {parameters:,} parameters")
    for i, column in enumerate(density.schema.columns):
        role = ", given" if column.name in density.schema.given else ""
        print(f"{'columns' if i == 0 else '':<12}{column.name}: {column.describe()}{role}")
    rows, done = notes["rows"], notes["fit"]
    print(f"rows        {', '.join(f'{count} {part}' for part, count in rows.items())}")
    print(f"fit         {done['steps']} steps, {done['seconds']} s")
    ranked = notes["ranked"]
    kind = "held-out" if ranked["held_out"] else "training"
    error = (5 * 95 / ranked["rows"]) ** 0.5
    print(f"percentiles among {ranked['rows']} {kind} rows; the standard error of 5 is {error:.1f}")
    if "test_nats" in notes:  # what `diffeo fit` notes
        print(f"test        {notes['test_nats']:.3f} ± {notes['test_stderr']:.3f} nats per row")
        for baseline in notes["baselines"]:
            print(f"            {baseline['nats']:.3f} {baseline['name']}")
    print(f"written by  diffeo {notes['diffeo']}, torch {notes['torch']}")


def _tell(model: Any, notes: dict[str, Any]) -> None:
    """What is known of a density that is not of a table."""
    arguments = ", ".join(f"{name}={value}" for name, value in notes["arguments"].items() if value is not None)
    rows = [("flow", f"{notes['recipe']}({arguments})")]
    rows.append(("parameters", f"{sum(p.numel() for p in model.parameters()):,}"))
    if "coarse" in notes and model.event is not None:  # pictures
        rows.append(("pictures", f"{'×'.join(str(n) for n in model.event)} (channels, height, width)"))
        rows.append(("shades", str(model.levels)))
        rows.append(("classes", ", ".join(notes["classes"]) or "none"))
    if "mel" in notes:
        from diffeo.apps.speech import Mel

        sound = Mel(*notes["mel"])
        rows.append(("sound", f"{sound.rate} Hz, {sound.mels} bands, a frame every {sound.hop} samples"))
    if "symbols" in notes:  # a voice
        rows.append(("speakers", ", ".join(name or "one without a name" for name in notes["speakers"])))
        rows.append(("reading", f"{notes['reading']}: {' '.join(map(repr, notes['symbols']))}"))
    rows.append(("written by", f"diffeo {notes['diffeo']}, torch {notes['torch']}"))
    for name, value in rows:
        print(f"{name:<12}{value}")


@app.command(epilog="Example:  diffeo recipes")
def recipes() -> None:
    """List the flows that `diffeo fit --recipe` knows."""
    import diffeo
    from diffeo.tables.fit import AUTO, table_recipes

    known = {name: diffeo.recipes()[name] for name in table_recipes()}
    width = max(map(len, known))
    for name, build in known.items():
        summary = (build.__doc__ or "").strip().splitlines()[0]
        print(f"{name:<{width}}  {summary}{' (auto)' if name == AUTO else ''}")
