"""`diffeo fit`: from a table to a model file, with its score beside simple baselines."""

from __future__ import annotations

import shlex
import shutil
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from diffeo.cli.app import (
    MODEL,
    Decimal,
    Header,
    Missing,
    RecipeOption,
    Separator,
    app,
    checkpoint_of,
    parse_duration,
    program,
    recipe_options,
)

FEWEST = 20  # rows


@app.command(epilog="Example:  diffeo fit patients.csv -o patients.safetensors --drop id --time-limit 5m")
def fit(
    table: Annotated[
        Path,
        typer.Argument(help="CSV, TSV, Parquet, Feather or JSON Lines; - for CSV from a pipe.", show_default=False),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Model file to write.")] = Path("model.safetensors"),
    recipe: Annotated[str, typer.Option(help="Which flow; `diffeo recipes` lists them.")] = "auto",
    option: RecipeOption = None,
    given: Annotated[
        list[str] | None,
        typer.Option(help="Column that the others are conditional on; repeat for more.", show_default=False),
    ] = None,
    drop: Annotated[
        list[str] | None, typer.Option(help="Column to leave out; repeat for more.", show_default=False)
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            help="What a column holds, as column=kind: category, text, number, continuous, positive, whole or date; "
            "repeat for more.",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Column of row weights, at least 0; it is not modelled.", show_default=False),
    ] = None,
    missing: Annotated[str, typer.Option(help="Rows with missing values: error, or drop.")] = "error",
    unseen: Annotated[
        str, typer.Option(help="Categories that training did not hold: error, or level to score them too.")
    ] = "error",
    sep: Separator = None,
    decimal: Decimal = None,
    header: Header = None,
    na: Missing = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the rows.", show_default="by size", min=1)] = None,
    time_limit: Annotated[
        str | None, typer.Option(help="Training time, as 90s, 5m or 1h.", show_default="none")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of split, weights and batches.", min=0, max=2**32 - 1)] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted fit.")] = False,
) -> None:
    """Fit a density to a table. Prints its score on held-out rows beside simple baselines."""
    from diffeo.cli.files import PIPE, Dialect, check_output, opened, read_table
    from diffeo.tables.fit import find_table_recipe
    from diffeo.training import checkpoint as checkpoints

    check_output(output, (MODEL,), table)
    options, kinds = recipe_options(option or []), _kinds(kind or [])
    find_table_recipe(recipe, options)
    dialect = Dialect(sep, decimal, header, tuple(na or ())).checked()
    seconds = None if time_limit is None else parse_duration(time_limit)
    if missing not in ("error", "drop"):
        raise ValueError(f"--missing: expected error or drop, got {missing!r}")
    if unseen not in ("error", "level"):
        raise ValueError(f"--unseen: expected error or level, got {unseen!r}")
    folder = checkpoint_of(output, resume)
    with opened(table) as path:
        frame = read_table(path, dialect, text={name for name, k in kinds.items() if k == "text"})
    frame = _chosen(frame, table, given or [], drop or [], list(kinds), weights, missing)
    masses = None if weights is None else _masses(frame.pop(weights), weights, table)
    try:
        learned = {"given": given or [], "kinds": kinds, "unseen": unseen, "recipe": recipe, "options": options}
        learned |= {"epochs": epochs, "time_limit": seconds, "seed": seed, "resume": resume, "checkpoint": folder}
        _fit(frame, masses, table, output, learned)
    except KeyboardInterrupt:
        words = [program(), "fit", str(table), "-o", str(output), "--recipe", recipe, "--seed", str(seed)]
        for flag, names in (("--option", option), ("--given", given), ("--drop", drop), ("--kind", kind), ("--na", na)):
            words += [word for name in names or [] for word in (flag, name)]
        words += ["--weights", weights] if weights else []
        words += ["--missing", missing] if missing != "error" else []
        words += ["--unseen", unseen] if unseen != "error" else []
        words += ["--sep", sep] if sep else []
        words += ["--decimal", decimal] if decimal else []
        words += [] if header is None else ["--header" if header else "--no-header"]
        words += ["--epochs", str(epochs)] if epochs else []
        words += ["--time-limit", time_limit] if time_limit else []
        kept = (folder / checkpoints.NAME).exists()
        again = shlex.join([*words, "--resume"]) if kept else "the same command"
        piped = " (with the same table in the pipe)" if table == PIPE else ""
        print(f"diffeo: interrupted; continue with: {again}{piped}", file=sys.stderr)
        raise typer.Exit(130) from None
    except BaseException:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        raise


def _chosen(
    frame: Any, table: Path, given: list[str], drop: list[str], kinds: list[str], weights: str | None, missing: str
) -> Any:
    """The columns and rows to learn from, or an error before any work."""
    import numpy as np

    from diffeo.tables.schema import check_complete

    named = {"--given": given, "--drop": drop, "--kind": kinds, "--weights": [weights] if weights else []}
    for flag, names in named.items():
        unknown = [name for name in names if name not in frame]
        if unknown:
            raise ValueError(f"{flag}: {table} has no column {unknown[0]!r}; it has {', '.join(frame.columns)}")
    both = sorted(set(given) & set(drop))
    if both:
        raise ValueError(f"--given and --drop both name {both[0]!r}")
    if weights in (*given, *drop, *kinds):
        raise ValueError(f"--weights: {weights!r} is not modelled, so no other option can name it")
    frame = frame.drop(columns=drop)
    if not len(frame.columns) - (weights is not None):
        raise ValueError(f"{table}: no column left")
    if missing == "drop":
        kept = frame.replace([np.inf, -np.inf], np.nan).notna().all(axis=1)
        if not kept.all():
            print(
                f"diffeo: {int((~kept).sum())} rows with missing values left out, {int(kept.sum())} kept",
                file=sys.stderr,
            )
        frame = frame[kept].reset_index(drop=True)
    try:
        check_complete(frame, hint="fill them, drop a column with --drop, or the rows with --missing drop")
    except ValueError as error:
        raise ValueError(f"{table}: {error}") from error
    if len(frame) < FEWEST:
        raise ValueError(f"{table}: {len(frame)} row{'s' * (len(frame) != 1)}; a density needs at least {FEWEST}")
    return frame


def _masses(column: Any, name: str, table: Path) -> Any:
    """The weights of the rows, checked."""
    import numpy as np
    import pandas as pd

    masses = np.asarray(pd.to_numeric(column, errors="coerce"), dtype=np.float64)
    if not (np.isfinite(masses) & (masses >= 0)).all() or not masses.any():
        raise ValueError(f"--weights: column {name!r} of {table} must hold numbers of at least 0, not all 0")
    return masses


def _mean(values: Any, weights: Any) -> tuple[float, float]:
    """The mean, by the weights if there are any, and its standard error."""
    import numpy as np

    share = np.full(len(values), 1 / len(values)) if weights is None else weights / weights.sum()
    mean = float(share @ values)
    return mean, float(np.sqrt(share**2 @ (values - mean) ** 2))


def _kinds(words: list[str]) -> dict[str, str]:
    """What columns hold, from COLUMN=KIND."""
    from diffeo.tables.columns import KINDS

    kinds: dict[str, str] = {}
    for word in words:
        name, separator, kind = word.rpartition("=")
        if not separator or kind not in KINDS:
            raise ValueError(f"--kind: expected COLUMN=KIND with a kind among {', '.join(KINDS)}; got {word!r}")
        kinds[name] = kind
    return kinds


def _fit(
    frame: Any,
    masses: Any,
    table: Path,
    output: Path,
    learned: dict[str, Any],
) -> None:
    """Fit, score on held-out rows beside baselines, save; `learned` are arguments of `fit_table`."""
    import numpy as np

    import diffeo
    from diffeo.baselines import table_baselines
    from diffeo.tables import fit_table
    from diffeo.training import FitResult

    seed, folder = learned["seed"], learned["checkpoint"]
    order = np.random.default_rng(seed).permutation(len(frame))
    tenth = max(1, len(frame) // 10)
    places = np.split(order, [tenth, 2 * tenth])
    test, validation, train = (frame.iloc[i] for i in places)
    of_test, of_validation, of_train = (None if masses is None else masses[i] for i in places)
    with warnings.catch_warnings(record=True) as remarks:
        warnings.simplefilter("always", UserWarning)
        try:
            model = fit_table(
                train,
                validation=validation,
                weights=None if masses is None else (of_train, of_validation),
                vocabulary=test,
                on_schema=lambda schema: _announce(schema, remarks),
                **learned,
            )
        except ValueError as error:
            raise ValueError(f"{table}: {str(error).removeprefix('fit: ')}") from error
    result: FitResult = model.result  # type: ignore[assignment] (`fit_table` sets it)
    log_p = model.log_prob(test).to_numpy()
    model.rank_among(np.concatenate([model.log_prob(validation).to_numpy(), log_p]))
    nats, stderr = _mean(log_p, of_test)
    # the baselines know no weights
    others = table_baselines(model, train, validation, test, seed=seed) if masses is None else []
    notes = {
        "rows": {"train": len(train), "validation": len(validation), "test": len(test)},
        "test_nats": nats,
        "test_stderr": stderr,
        "baselines": [b._asdict() for b in others],
    }
    diffeo.save(model, output, notes=notes)
    shutil.rmtree(folder, ignore_errors=True)
    why = {"steps": "as planned", "patience": "no better on held-out rows", "time_limit": "time limit reached"}
    print(f"{result.steps} steps on {len(train)} rows in {result.seconds:.0f} s ({why[result.stopped]}).")
    bound = "" if model.exact else "; a bound, since some columns are whole"
    print(f"Mean log-density of {len(test)} test rows, in nats (higher is better{bound}):")
    name = model.notes["flow"]
    for label, value, error, choice in [(name, nats, stderr, "this flow"), *others]:
        print(f"  {label:<18}{value:>10.3f} ± {error:.3f}   {choice}")
    print(f"Wrote {output}.  Next:")
    example = [word for name in learned["given"] for word in ("--given", f"{name}={test[name].iloc[0]}")]
    print("  " + shlex.join([program(), "report", str(output), str(table)]))
    print("  " + shlex.join([program(), "sample", str(output), "-n", "5", *example]))
    print("  " + shlex.join([program(), "score", str(output)]) + " NEW_TABLE")


def _announce(schema: Any, remarks: list[Any]) -> None:
    """What each column was taken for, and warnings, before training begins."""
    width = max(len(str(c.name)) for c in schema.columns)
    print("Columns:")
    for column in schema.columns:
        role = " (given)" if column.name in schema.given else ""
        print(f"  {column.name!s:<{width}}  {column.describe()}{role}")
    sys.stdout.flush()
    for remark in remarks:
        print(f"diffeo: warning: {remark.message}", file=sys.stderr)
    remarks.clear()
