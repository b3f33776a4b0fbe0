"""Real tables for the density benchmarks, and the two splits they are scored on.

`peer_split` is the protocol in which every library is compared: standardised float32, so that no library's own
scaling (or lack of it) decides. `default_split` is the one for a user's first call: raw units, nothing prepared.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

ADBENCH = {
    "magic.gamma": "22_magic.gamma",
    "annthyroid": "2_annthyroid",
    "cover": "10_cover",
    "PageBlocks": "27_PageBlocks",
    "Waveform": "41_Waveform",
    "Wilt": "44_Wilt",
}
UCI = ("protein", "elevators", "kin40k")
TABLES = ("power", *UCI, *ADBENCH)
POWER_STEP = np.array([1e-3, 1e-2, 1.0, 1.0, 1.0, 1e-3])  # what the power table's columns were rounded to
REPEATS_BELOW = 0.95  # a column repeats when it has fewer unique values than this share of the rows
ATOM_SHARE = 0.05  # a value that holds more of the rows than this is an atom: no density describes it

Split = tuple[np.ndarray, np.ndarray, np.ndarray]


def data_root() -> Path:
    """Folder of the real data, which is not shipped: `DIFFEO_DATA`, else ../shared/data beside the repository."""
    given = os.environ.get("DIFFEO_DATA")
    root = Path(given) if given else Path(__file__).resolve().parents[1].parent / "shared" / "data"
    if not root.is_dir():
        raise FileNotFoundError(f"no real data at {root}: set DIFFEO_DATA to the folder that holds tabular/")
    return root


def load(name: str) -> np.ndarray:
    """The raw table as float64; of an ADBench table only the normal rows: the anomalies are another population."""
    tabular = data_root() / "tabular"
    if name == "power":
        return np.load(tabular / "power_partial.npy").astype(np.float64)
    if name in ADBENCH:
        with np.load(tabular / "adbench" / f"{ADBENCH[name]}.npz") as file:
            return file["X"][file["y"] == 0].astype(np.float64)
    if name in UCI:
        return np.loadtxt(tabular / "uci" / f"{name}.csv.gz", delimiter=",", dtype=np.float64)
    raise ValueError(f"unknown table {name!r}: one of {', '.join(TABLES)}")


def peer_split(name: str) -> Split:
    """(train, valid, test) of the protocol shared with the peers: 80/10/10, standardised by train, float32.

    Only power is dequantized (its rounding is known), before the shuffle, each with its own generator of seed 0.
    The first tenth of the shuffled rows is the test part, the second the validation part. Nats of these arrays are
    in standardised units. Constant columns are dropped: they have no density.
    """
    table = load(name)
    if name == "power":
        table = table + np.random.default_rng(0).random(table.shape) * POWER_STEP
    table = _varying(table)
    table = table[np.random.default_rng(0).permutation(len(table))]
    tenth = len(table) // 10
    test, valid, train = table[:tenth], table[tenth : 2 * tenth], table[2 * tenth :]
    mean, std = train.mean(0), train.std(0)
    train, valid, test = (((part - mean) / std).astype(np.float32) for part in (train, valid, test))
    return train, valid, test


def default_split(name: str) -> Split:
    """(train, valid, test) in raw units, 60/20/20 of the rows shuffled with seed 0, float64, constant columns dropped.

    A density of repeated values is unbounded, so whoever fits the atoms hardest would win. Hence a column that
    repeats (fewer unique values than `REPEATS_BELOW` of the rows) gets uniform noise of its median spacing, the
    same draw for everybody: U * median(diff(unique values)), U from a generator of seed 0, before the shuffle.
    """
    table = _varying(load(name))
    spacing = np.array([_spacing(column) for column in table.T])
    table = table + np.random.default_rng(0).random(table.shape) * spacing
    table = table[np.random.default_rng(0).permutation(len(table))]
    first, second = int(0.6 * len(table)), int(0.8 * len(table))
    return table[:first], table[first:second], table[second:]


def atoms(name: str) -> dict[int, float]:
    """Columns of the raw table (constant ones left out) where one value holds over 5 % of the rows, and its share.

    The column is its index in `load(name)`. The noise of `default_split` turns such an atom into a narrow box whose
    height depends on the spacing, so tables that have one are listed apart.
    """
    table = load(name)
    shares = {i: float(np.unique(column, return_counts=True)[1].max() / len(table)) for i, column in enumerate(table.T)}
    return {i: share for i, share in shares.items() if ATOM_SHARE < share < 1.0}


def _varying(table: np.ndarray) -> np.ndarray:
    """The table without its constant columns."""
    return table[:, table.min(0) < table.max(0)]


def _spacing(column: np.ndarray) -> float:
    """Median gap between the unique values of a column that repeats; 0 for one that does not, which needs no noise."""
    values = np.unique(column)
    return float(np.median(np.diff(values))) if len(values) < REPEATS_BELOW * len(column) else 0.0
