"""For the site only: doctests as code blocks, an entry for every parameter, names that load when first used."""

from __future__ import annotations

import re
from typing import Any

import griffe

DOCTEST = re.compile(r"^>>> .*?(?=\n\s*\n|\Z)", re.MULTILINE | re.DOTALL)
ARGS = re.compile(r"(?<=^Args:\n)(?: {4}.*\n?|\n(?= {4}))+", re.MULTILINE)
# `low, high: the limits`, where the names may take several lines and the text further, deeper ones
TOGETHER = re.compile(r"^ {4}(\w+(?:,\s+\w+)+): (.*(?:\n {5,}.*)*)", re.MULTILINE)


def apart(entry: re.Match[str]) -> str:
    return "\n".join(f"    {name}: {entry[2]}" for name in re.split(r",\s+", entry[1]))


class Docstrings(griffe.Extension):
    """Shows what `diffeo.public` loads late; wraps runs of `>>>` lines with their output; splits shared parameters."""

    def on_module_members(self, *, mod: griffe.Module, **_: Any) -> None:
        if mod.path == "diffeo.public":  # what stands there for type checkers is there when it is asked for
            for member in mod.members.values():
                member.runtime = True

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            text = ARGS.sub(lambda found: TOGETHER.sub(apart, found.group()), obj.docstring.value)
            obj.docstring.value = DOCTEST.sub(lambda found: f"```pycon\n{found.group()}\n```", text)
