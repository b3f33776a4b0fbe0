"""Model cards: what a model was trained on, how well it does, and what it is not for."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from diffeo.storage import replacing
from diffeo.version import __version__


def write_card(path: Path, model: Any, **sections: Any) -> None:
    """Write the `card` of a model that was made just now."""
    count = sum(p.numel() for p in model.parameters())
    made = f"by diffeo {__version__}, PyTorch {torch.__version__}, Python {platform.python_version()}"
    with replacing(path) as temporary:
        temporary.write_text(card(parameters=count, made=made, **sections), encoding="utf-8")


def card(
    *,
    title: str,
    what: str,
    parameters: int | None,
    made: str,
    data: str,
    training: str,
    scores: Mapping[str, str],
    uses: str,
    limits: Sequence[str],
) -> str:
    """A model card in Markdown, with the sections of "Model Cards for Model Reporting".

    Args:
        title: of the card.
        what: the model is.
        parameters: how many it has; None to leave that out.
        made: by what.
        data: it was trained on, with its source and licence.
        training: how.
        scores: measured values by what they measure, and on which data.
        uses: what it is for.
        limits: what it cannot do.

    "Model Cards for Model Reporting" (Mitchell et al., 2019), https://arxiv.org/abs/1810.03993
    """
    rows = "\n".join(f"| {name} | {value} |" for name, value in scores.items())
    bullets = "\n".join(f"- {limit}" for limit in limits)
    count = "" if parameters is None else f" {parameters:,} parameters."
    return f"""# {title}

{what}{count} Made {made}.

## Data

{data}

## Training

{training}

## Scores

| | |
| --- | --- |
{rows}

## For

{uses}

## Limits

{bullets}
"""
