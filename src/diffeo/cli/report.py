"""`diffeo report`: a page about a model and a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffeo.cli.app import Decimal, Header, Missing, Separator, app, load_model


@app.command(epilog="Example:  diffeo report patients.safetensors patients.csv -o patients.html")
def report(
    model: Annotated[Path, typer.Argument(help="Model file.", show_default=False)],
    table: Annotated[
        Path, typer.Argument(help="Table with the model's columns; - for CSV from a pipe.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="HTML page to write.")] = Path("report.html"),
    sep: Separator = None,
    decimal: Decimal = None,
    header: Header = None,
    na: Missing = None,
) -> None:
    """Write a page on a fit. Columns, pairs, calibration, and the most unusual rows with what makes them so."""
    from diffeo.cli.files import Dialect, check_output, opened, read_table
    from diffeo.report import write_report

    check_output(output, (".html",), model, table)
    density = load_model(model)
    with opened(table) as path:
        frame = read_table(path, Dialect(sep, decimal, header, tuple(na or ())).checked(), density.text_columns)
    try:
        write_report(density, frame, output, title=table.stem, model_name=model.name, progress=True)
    except ValueError as error:
        raise ValueError(f"{table}: {error}") from error
    print(f"Wrote {output}.")
