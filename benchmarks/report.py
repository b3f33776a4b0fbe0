"""Writes docs/benchmarks.md and its pictures from the JSON in benchmarks/results; every benchmark has its own section.

python benchmarks/report.py
"""

from __future__ import annotations

import re
from pathlib import Path

import alarms
import columns
import continuous
import density
import energies
import image_uses
import images
import known
import mixed
import outliers
import regression
import scale
import speech
import speed
import sphere
import streaming
import time_to_score

ROOT = Path(__file__).resolve().parents[1]
PAGE, README = ROOT / "docs" / "benchmarks.md", ROOT / "README.md"
BLOCK = re.compile(r"(<!-- speed: written by benchmarks/report.py -->\n).*?(<!-- end of speed -->)", re.S)
HEAD = """\
# Benchmarks

Written by `benchmarks/report.py` from the JSON in `benchmarks/results`; no number is typed in by hand. The data is
not shipped: set `DIFFEO_DATA` to its folder. `make bench` measures speed; `make bench-scale`,
`bench-density`, `bench-families` and `bench-tables` the rest.
"""
SECTIONS = (
    density.peers_section,
    density.defaults_section,
    density.estimator_section,
    known.section,
    outliers.section,
    alarms.section,
    regression.section,
    mixed.section,
    columns.section,
    streaming.section,
    density.roundtrip_section,
    speed.users_section,
    speed.section,
    time_to_score.section,
    scale.section,
    scale.inverse_section,
    energies.section,
    continuous.section,
    sphere.section,
    images.section,
    image_uses.section,
    speech.section,
)


def page() -> str:
    """All of docs/benchmarks.md."""
    return "\n".join(text for text in [HEAD, *(section() for section in SECTIONS)] if text)


def readme() -> str:
    """README.md with today's figures of speed in their block."""
    return BLOCK.sub(lambda found: f"{found[1]}{speed.readme()}{found[2]}", README.read_text())


def main() -> None:
    """The page, the block of the README, and the pictures that need no flows."""
    PAGE.write_text(page())
    README.write_text(readme())
    speed.draw()
    continuous.draw()
    images.draw()


if __name__ == "__main__":
    main()
