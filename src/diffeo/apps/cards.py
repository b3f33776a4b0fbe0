"""Model cards of the demos: what a model was trained on, how well it does, and what it is not for."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from diffeo.storage import replacing
from diffeo.version import __version__


def write_card(
    path: Path,
    *,
    title: str,
    what: str,
    data: str,
    training: str,
    scores: Mapping[str, str],
    uses: str,
    limits: Sequence[str],
    model: Any,
) -> None:
    """Write a model card in Markdown, with the sections of "Model Cards for Model Reporting".

    Args:
        path: to write.
        title: of the card.
        what: the model is.
        data: it was trained on, with its source and licence.
        training: how.
        scores: measured values by what they measure, and on which data.
        uses: what it is for.
        limits: what it cannot do.
        model: whose parameters are counted.

    "Model Cards for Model Reporting" (Mitchell et al., 2019), https://arxiv.org/abs/1810.03993
    """
    count = sum(p.numel() for p in model.parameters())
    rows = "\n".join(f"| {name} | {value} |" for name, value in scores.items())
    bullets = "\n".join(f"- {limit}" for limit in limits)
    versions = f"diffeo {__version__}, PyTorch {torch.__version__}, Python {platform.python_version()}"
    text = f"""# {title}

{what} {count:,} parameters. Made by {versions}.

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
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
