"""Recipes: functions that return a density, remembered by name and arguments so that files can rebuild it.

A model file is one safetensors file. Its header holds, as JSON strings: the format and its version, the recipe and its
arguments, the versions that wrote it, and a SHA-256 digest over all of it and the tensors. Opening one runs no code
but the named recipe, which must already be registered.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral
from typing import Any, ParamSpec, TypeVar, overload

import torch
from torch import Tensor

from diffeo.core import Density
from diffeo.storage import FORMAT, FORMAT_VERSION, RecipeCall, from_json, read_tensors, to_json, write_tensors
from diffeo.version import __version__

P = ParamSpec("P")
D = TypeVar("D", bound=Density)


EVENTS = (
    *("vectors", "rows", "numbers given a context", "images", "spectrograms", "waveforms"),
    *("angles", "unit vectors", "a box"),
)
_recipes: dict[str, Callable[..., Density]] = {}
_events: dict[str, str | None] = {}  # what each is a density of


@overload
def recipe(function: Callable[P, D], /) -> Callable[P, D]: ...
@overload
def recipe(*, events: str | None = None) -> Callable[[Callable[P, D]], Callable[P, D]]: ...
def recipe(function: Callable[..., Any] | None = None, /, *, events: str | None = None) -> Any:
    """Register a function that returns a density, so that `save` and `load` know it by its name.

    Its arguments must be numbers, strings, booleans, None, tensors, and lists or dicts of those.

    Args:
        function: what makes the density.
        events: what the density is one of: "vectors" (any real numbers; the columns of a table, so that `fit_table`,
            the estimators and the program offer it), "rows" (categories and numbers), "numbers given a context",
            "images", "spectrograms", "waveforms", "angles", "unit vectors", "a box"; None where it is not for others to
            choose.

    Raises:
        ValueError: another function already has the name; unknown events.

    >>> import diffeo
    >>> @diffeo.recipe(events="vectors")
    ... def my_flow(features):
    ...     return diffeo.Flow(diffeo.Standardize(features), diffeo.StudentT(features))
    >>> my_flow(2).recipe
    RecipeCall(name='my_flow', arguments={'features': 2})
    """
    if events is not None and events not in EVENTS:
        raise ValueError(f"recipe: events must be one of {', '.join(EVENTS)}, got {events!r}")
    if function is None:
        return lambda function: _register(function, events)
    return _register(function, events)


def _register(function: Callable[..., Density], events: str | None) -> Callable[..., Density]:
    name = function.__name__
    known = _recipes.get(name)
    if known is not None and (known.__module__, known.__qualname__) != (function.__module__, function.__qualname__):
        raise ValueError(f"recipe: the name {name!r} is taken by {known.__module__}.{known.__qualname__}")
    signature = inspect.signature(function)
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ValueError(f"recipe: {name} takes {parameter}; name every argument, so that a file can hold it")

    @functools.wraps(function)
    def build(*args: Any, **kwargs: Any) -> Density:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        if function.__module__.startswith("diffeo."):
            left_open = {k for k, p in signature.parameters.items() if p.default is None and bound.arguments[k] is None}
            _check_sizes(name, {k: v for k, v in bound.arguments.items() if k not in left_open})
        density = function(*args, **kwargs)
        density.recipe = RecipeCall(name, dict(bound.arguments))
        return density

    _recipes[name], _events[name] = build, events
    return build


# the least that recipes take of what they count
LEAST = {"features": 0, "layers": 0, "context": 0, "components": 0, "bins": 1, "degree": 1, "units": 1}
STRUCTURED = {"scales": 1, "blocks": 1, "classes": 0, "levels": 2}


def _check_sizes(name: str, arguments: Mapping[str, Any]) -> None:
    """Refuse numbers of features, layers and so on that are none, before a layer fails on them."""
    structured = STRUCTURED if _events.get(name) in ("images", "spectrograms", "waveforms") else {}
    for what, least in {**LEAST, **structured}.items():
        if what not in arguments:
            continue
        value = arguments[what]
        least = 1 if what == "features" and _events.get(name) != "rows" else least
        if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
            raise ValueError(f"{name}: {what} must be a whole number of at least {least}, got {value!r}")
    hidden = arguments.get("hidden")
    hidden = hidden if isinstance(hidden, Iterable) else [hidden]
    if hidden != [None] and not all(isinstance(n, Integral) and int(n) > 0 for n in hidden):
        raise ValueError(f"{name}: hidden must hold whole numbers of at least 1, got {hidden!r}")


def recipes(events: str | None = None) -> dict[str, Callable[..., Density]]:
    """The registered recipes by name; with `events`, those of such events only."""
    return {name: build for name, build in sorted(_recipes.items()) if events is None or _events[name] == events}


def takes(name: str, argument: str) -> bool:
    """Whether a registered recipe has an argument of this name."""
    return argument in inspect.signature(find_recipe(name)).parameters


def with_normal_base(name: str) -> dict[str, Any]:
    """The arguments with which a recipe has a normal base; one that may choose a mixture says `components=None`."""
    components = inspect.signature(find_recipe(name)).parameters.get("components")
    return {"components": 0} if components is not None and components.default is None else {}


def find_recipe(name: str) -> Callable[..., Density]:
    """A registered recipe, or an error that lists those there are."""
    if name not in _recipes:
        raise ValueError(f"unknown recipe {name!r}; there are {', '.join(sorted(_recipes))}")
    return _recipes[name]


def check_options(name: str, options: Iterable[str], apart: Iterable[str] = ()) -> None:
    """Refuse options that are no arguments of a recipe, or are those `apart`, which the caller sets.

    Raises:
        ValueError: the first such option, beside those that there are.
    """
    free = [each for each in inspect.signature(find_recipe(name)).parameters if each not in apart]
    wrong = [each for each in options if each not in free]
    if wrong:
        raise ValueError(f"{name} takes no option {wrong[0]!r}; it takes {', '.join(free)}")


def save(density: Density, path: str | os.PathLike[str], notes: Mapping[str, Any] | None = None) -> None:
    """Write a density made by a recipe to a safetensors file; `diffeo.save` is this, and takes densities of tables too.

    Raises:
        ValueError: the density was made by hand, or an argument of its recipe cannot be written as JSON.
    """
    tensors, header = pack(density, notes)
    write_tensors(path, tensors, {**versions(), **header})


def versions() -> dict[str, str]:
    """The format of model files, and what writes them."""
    return {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "diffeo": __version__,
        "torch": torch.__version__,
    }


def pack(density: Density, notes: Mapping[str, Any] | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights, recipe and notes of a density, as a file holds them."""
    call = density.recipe
    if call is None:
        raise ValueError(
            f"save: this {type(density).__name__} was made by hand, so a file cannot say how to rebuild it; "
            "build it in a function decorated with @diffeo.recipe, or save its state_dict() yourself"
        )
    arguments = to_json(call.arguments)
    with torch.random.fork_rng(devices=[]):
        rebuilt = find_recipe(call.name)(**from_json(arguments))
    if repr(rebuilt) != repr(density):
        raise ValueError(
            f"save: this flow was changed after the recipe {call.name!r} built it, so loading would give another; "
            "put the change into a recipe of your own with @diffeo.recipe"
        )
    header = {"recipe": call.name, "arguments": arguments, "notes": to_json(dict(notes or {}))}
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in density.state_dict().items()}
    return tensors, header


def load(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Density:
    """Read a density that `save` wrote; `diffeo.load` is this, and reads the densities of tables too."""
    return load_with_notes(path, device)[0]


def load_with_notes(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> tuple[Density, dict[str, Any]]:
    """A density that `save` wrote, with what `read_notes` tells of it."""
    tensors, header = read_tensors(path)
    return unpack(tensors, header, path, device), notes_of(header)


def unpack(
    tensors: dict[str, Tensor], header: dict[str, str], path: str | os.PathLike[str], device: str | torch.device
) -> Density:
    """The density that `pack` packed; the path is for errors."""
    if "recipe" not in header:
        raise ValueError(f"{path}: an estimator; read it with diffeo.load")
    arguments = from_json(header["arguments"])
    if header["recipe"] not in _recipes:
        raise ValueError(
            f"{path}: it was made by the recipe {header['recipe']!r}, which is not registered; "
            "import the module that defines it with @diffeo.recipe first"
        )
    with torch.random.fork_rng(devices=[]):
        density = _recipes[header["recipe"]](**arguments)
    try:
        density.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{path}: the weights do not fit the recipe {header['recipe']!r}: {error}") from error
    floats = [t.dtype for t in tensors.values() if t.is_floating_point()]
    return density.to(device=device, dtype=floats[0] if floats else None).eval()


def read_notes(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The notes that `save` kept beside a density, with the recipe, its arguments and the versions that wrote it."""
    return notes_of(read_tensors(path)[1])


def notes_of(header: dict[str, str]) -> dict[str, Any]:
    """The notes of a header, with recipe, arguments and versions."""
    told = {key: header[key] for key in ("recipe", "diffeo", "torch") if key in header}
    return {**from_json(header["notes"]), **told, "arguments": from_json(header["arguments"])}
