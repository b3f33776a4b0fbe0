"""`diffeo score`, `sample`, `info` and `recipes`: what one does with a model file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from diffeo.cli.app import app, load_model

DRAWN = 8192  # rows drawn at once
ModelFile = Annotated[Path, typer.Argument(help="Model file.", show_default=False)]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o", "--output", help="Table to write; its ending says the format.", show_default="CSV to standard output"
    ),
]


@app.command(epilog="Example:  diffeo score patients.safetensors new.parquet -o scores.parquet")
def score(
    model: ModelFile,
    table: Annotated[
        Path, typer.Argument(help="Table with the model's columns; - for CSV from a pipe.", show_default=False)
    ],
    output: Output = None,
    keep: Annotated[bool, typer.Option("--keep", help="Write the table's columns too.")] = False,
) -> None:
    """Write the log-density of every row, in nats, and its percentile among the training rows.

    The lower, the more unusual: percentile 0 is below every training row. The table is read, scored and written a block
    of rows at a time.
    """
    import pandas as pd

    from diffeo.cli.files import SUFFIXES, Writer, check_input, check_output, opened, read_blocks
    from diffeo.tables.columns import Category

    check_output(output, SUFFIXES, model, table)
    density = load_model(model)
    with opened(table) as path:
        check_input(path)
        with Writer(output) as writer:
            text = {c.name for c in density.schema.columns if isinstance(c, Category) and isinstance(c.levels[0], str)}
            for block in read_blocks(path, text=text):
                if all(name in block for name in density.columns):
                    new = [name for name in ("log_density", "percentile") if keep and name in block]
                    if new:
                        raise ValueError(f"{table}: it has a column {new[0]!r} already; leave out --keep")
                headerless = all(name == f"x{i}" for i, name in enumerate(block.columns))
                hint = "; its first line is all numbers, so it counts as having no header" if headerless else ""
                try:
                    log_p = density.log_prob(block)
                except ValueError as error:
                    lacks = "which the table lacks" in str(error)
                    raise ValueError(f"{table}: {error}{hint if lacks else ''}") from error
                scores = pd.DataFrame({"log_density": log_p, "percentile": density.percentile(log_p)})
                writer.write(pd.concat([block, scores], axis=1) if keep else scores)


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
    """Draw rows from the model: the columns, categories, ranges and rounding of its table."""
    import torch

    from diffeo.cli.files import SUFFIXES, Writer, check_output

    if n < 1:
        raise ValueError(f"-n: expected at least 1 row, got {n}")
    check_output(output, SUFFIXES, model)
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
    """Print what a model file holds."""
    from diffeo.recipes import read_notes

    density = load_model(model)
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
    if "test_nats" in notes:  # what `diffeo fit` notes
        print(f"test        {notes['test_nats']:.3f} ± {notes['test_stderr']:.3f} nats per row")
        for baseline in notes["baselines"]:
            print(f"            {baseline['nats']:.3f} {baseline['name']}")
    print(f"written by  diffeo {notes['diffeo']}, torch {notes['torch']}")


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
