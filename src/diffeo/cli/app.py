"""The program: its entry point and what the commands share. Errors are one plain line on stderr and exit code 2."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from diffeo.version import __version__

app = typer.Typer(
    rich_markup_mode=None,
    name="diffeo",
    help="Densities of tables, pictures and speech: fit a normalizing flow, score, draw samples, report.",
    no_args_is_help=True,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

MODEL = ".safetensors"
Separator = Annotated[
    str | None,
    typer.Option("--sep", help="Separator of a text table: a character, or tab, space.", show_default="found"),
]
Decimal = Annotated[str | None, typer.Option(help="Decimal mark of a text table: . or ,", show_default="found")]
Header = Annotated[
    bool | None,
    typer.Option("--header/--no-header", help="Whether the first line names the columns.", show_default="found"),
]
Missing = Annotated[
    list[str] | None,
    typer.Option("--na", help="Text that stands for a missing value; repeat for more.", show_default=False),
]

RecipeOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Argument of the recipe, as layers=3 or univariate=MixtureCDF; repeat for more.", show_default=False
    ),
]


def main(args: list[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    if (sys.argv[1:] if args is None else args) == ["--version"]:  # at once: reading options takes Typer a while
        print(f"diffeo {__version__}")
        return 0
    # waiting threads of PyTorch's CPU build sleep instead of spinning: small models beside other work run far faster
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # older Typer stands on click, newer brings its own copy: the base class of its errors, wherever it comes from
    usage_error: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
    try:
        return int(app(args, prog_name="diffeo", standalone_mode=False) or 0)
    except typer.Exit as stop:
        return stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print("diffeo: interrupted", file=sys.stderr)
        return 130
    except usage_error as error:
        message = error.format_message()
    except OSError as error:
        message = ": ".join(str(part) for part in (error.filename, error.strerror) if part) or str(error)
    except (ValueError, ArithmeticError, RuntimeError, ImportError) as error:
        message = str(error).removeprefix("fit: ") or type(error).__name__
    if message:
        print("diffeo: " + " ".join(message.split()), file=sys.stderr)
    return 2


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Densities of tables, pictures and speech: fit a normalizing flow, score, draw samples, report."""
    if version:
        print(f"diffeo {__version__}")
        raise typer.Exit


def load_model(path: Path) -> Any:
    """A table's density from a file, or an error that says what the file is instead."""
    import diffeo
    from diffeo.tables import TableDensity

    model = diffeo.load(path)
    if not isinstance(model, TableDensity):
        raise ValueError(f"{path}: a density of tensors; the program reads densities of tables, as `diffeo fit` writes")
    return model


def program() -> str:
    """The program as the user can call it again."""
    if shutil.which("diffeo"):
        return "diffeo"
    beside = Path(sys.executable).with_name("diffeo")
    if not beside.exists():
        return "python -m diffeo"
    return str(beside.relative_to(Path.cwd()) if beside.is_relative_to(Path.cwd()) else beside)


PYTHON = {"None": "null", "True": "true", "False": "false"}  # names of constants, as the docs of recipes have them


def recipe_options(words: list[str]) -> dict[str, Any]:
    """Arguments of a recipe from NAME=VALUE; values are JSON, Python's None, True and False, or else text."""
    options: dict[str, Any] = {}
    for word in words:
        name, separator, value = word.partition("=")
        if not separator or not name.isidentifier():
            raise ValueError(f"--option: expected NAME=VALUE, got {word!r}")
        try:
            options[name] = json.loads(PYTHON.get(value, value))
        except json.JSONDecodeError:
            options[name] = value
    return options


def checkpoint_of(output: Path, resume: bool) -> Path:
    """The folder beside a model file that holds its fit until it is done; refused where it does not fit `--resume`.

    A run that was killed before it wrote any state has none: it starts afresh, and says so.
    """
    folder = output.with_name(output.name + ".ckpt")
    if folder.exists() and not resume and any(folder.iterdir()):
        raise ValueError(f"{folder} holds an interrupted fit: add --resume to continue it, or delete the folder")
    if resume and not (folder / "fit.safetensors").exists():
        if output.exists():
            raise ValueError(f"{output}: there is no interrupted fit to resume; without --resume it is fitted anew")
        print(f"diffeo: {folder}: no interrupted fit to resume; starting afresh", file=sys.stderr)
    return folder


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
