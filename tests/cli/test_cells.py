"""What the text of a table stands for: separators, decimal marks, headers, missing values, and sixty hostile files."""

import itertools
import warnings

import numpy as np
import pandas as pd
import pytest

from diffeo.cli import main
from diffeo.cli.cells import Dialect
from diffeo.cli.files import read_blocks, read_table

ROWS = 30


def written(path, columns, separator=",", decimal=".", header=True, end="\n"):
    def cell(value):
        return str(value).replace(".", decimal) if isinstance(value, float) else str(value)

    lines = [separator.join(columns)] if header else []
    lines += [separator.join(map(cell, row)) for row in zip(*columns.values(), strict=True)]
    path.write_text(end.join(lines) + end)
    return path


def columns():
    rng = np.random.default_rng(0)
    return {
        "size": [round(float(v), 3) for v in rng.normal(size=ROWS)],
        "count": [int(v) for v in rng.integers(0, 90, ROWS)],
        "kind": [str(v) for v in rng.choice(["oak", "elm"], ROWS)],
    }


@pytest.mark.parametrize(
    ("separator", "decimal"), [(",", "."), (";", "."), (";", ","), ("\t", ","), ("|", "."), (" ", ".")]
)
@pytest.mark.parametrize(("header", "end"), [(True, "\n"), (False, "\n"), (True, "\r\n")])
def test_how_a_file_is_written_is_found(tmp_path, separator, decimal, header, end):
    made = columns()
    found = read_table(written(tmp_path / "t.csv", made, separator, decimal, header, end))
    assert list(found.columns) == (list(made) if header else ["x0", "x1", "x2"])
    for (name, values), got in zip(made.items(), found, strict=True):
        assert found[got].tolist() == values, name


@pytest.mark.parametrize("ending", [".csv", ".CSV", ".csv.gz", ".csv.bz2", ".csv.xz", ".csv.zip", ".tsv"])
def test_compressed_files_and_endings(tmp_path, ending):
    frame = pd.DataFrame(columns())
    path = tmp_path / f"t{ending}"
    frame.to_csv(path, index=False, sep="\t" if "tsv" in ending else ",")
    assert read_table(path).equals(frame.astype({"kind": read_table(path)["kind"].dtype}))


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["02139", "00501", "7030"], ["02139", "00501", "7030"]),  # codes keep their zeros
        (["NA", "DE", "FR"], ["NA", "DE", "FR"]),  # a country
        (["1", "NA", "3"], [1.0, np.nan, 3.0]),
        (["1", "?", "3"], [1.0, np.nan, 3.0]),
        (["True", "false", "TRUE"], [True, False, True]),
        (["1e3", "-2.5", "0"], [1000.0, -2.5, 0.0]),
        (["9223372036854775807", "1", "2"], [9223372036854775807, 1, 2]),
        (["1,000", "12,500,000", "7"], [1000, 12500000, 7]),
        (["12%", "7%", "3%"], ["12%", "7%", "3%"]),
        (["2024-01-31", "2024-02-01", "2024-03-01"], list(pd.to_datetime(["2024-01-31", "2024-02-01", "2024-03-01"]))),
    ],
)
def test_what_cells_stand_for(tmp_path, cells, expected):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n" + "".join(f'"{cell}",{i}\n' for i, cell in enumerate(cells)))
    got = read_table(path)["a"].tolist()
    assert all(g == e or (g != g and e != e) for g, e in zip(got, expected, strict=True)), got


def test_offsets_of_summer_and_winter(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("t,x\n2024-03-31 01:30:00+01:00,1\n2024-03-31 03:30:00+02:00,2\n")
    assert read_table(path)["t"].diff().iloc[1] == pd.Timedelta("1h")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("5.9,1.6,virginica\n" + "5.1,3.5,setosa\n4.9,3.0,virginica\n" * 9, ["x0", "x1", "x2"]),
        ("0,0,1,setosa\n" + "5.1,3.5,8.6,setosa\n4.9,3.0,7.9,elm\n" * 9, ["x0", "x1", "x2", "x3"]),
        ("height,width\n" + "5.1,3.5\n" * 9, ["height", "width"]),
        ("town,2019,2020\n" + "Oslo,5.1,3.5\nRome,1.5,2.5\n" * 9, ["town", "2019", "2020"]),
        ("# made by hand\n\nheight,width\n" + "5.1,3.5\n" * 9, ["height", "width"]),
        ("kind,place\n" + "oak,Oslo\nelm,Rome\n" * 9, ["kind", "place"]),
    ],
)
def test_headers(tmp_path, text, names):
    path = tmp_path / "t.csv"
    path.write_text(text)
    assert list(read_table(path).columns) == names
    assert len(read_table(path, Dialect(header=False))) == text.strip().count("\n") + 1 - 2 * text.startswith("#")


def test_a_point_is_no_mark_of_thousands_by_chance(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a;b\n" + "1,5;1.234,5\n2,5;12.000\n" * 10 + "1.5;7\n")
    table = read_table(path)
    assert table["b"].tolist() == [1234.5, 12000.0] * 10 + [7.0]
    assert table["a"].iloc[-1] == "1.5"  # not 15: the column stays text, and whoever reads it is told


def test_strings_that_stand_for_missing(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("kind,x\n" + "oak,1\nunknown,-999\n" * 10)
    table = read_table(path, Dialect(missing=("unknown", "-999")))
    assert table.isna().sum().tolist() == [10, 10]


@pytest.mark.parametrize(
    ("cells", "hint"),
    [
        ([f"${v}" for v in range(30)], "signs"),
        ([f"{v}%" for v in range(30)], "signs"),
        ([f"<{v / 10}" for v in range(30)], "signs"),
        ([f'"{v},5"' for v in range(30)], "decimal"),
        ([f"{v % 12 + 1}/{v % 28 + 1}/2024" for v in range(30)], "2024-05-31"),
        ([str(v / 7) for v in range(29)] + ["low"], "--na"),
        ([f'"{v},{v}00"' for v in range(1, 31)], "decimal"),
    ],
)
def test_numbers_in_disguise_are_named(tmp_path, capsys, cells, hint):
    path = tmp_path / "t.csv"
    path.write_text("odd,x\n" + "".join(f"{cell},{i / 3}\n" for i, cell in enumerate(cells)))
    assert main(["fit", str(path), "-o", str(tmp_path / "m.safetensors"), "--epochs", "1"]) == 2
    said = capsys.readouterr().err
    assert "column 'odd'" in said
    assert hint in said
    assert said.count("\n") == 1
    declared = ["--kind", "odd=category", "--recipe", "maf", "--epochs", "1"]
    assert main(["fit", str(path), "-o", str(tmp_path / "m.safetensors"), *declared]) == 0


# the files that a stranger might hand over: each is read, or refused in one line that names the file
HEADS = ["a,b", "a;b", "a\tb", '"a","b"', "a,b,", "\ufeffa,b"]
BODIES = [
    "1,2\n" * 25,
    "1;2\n" * 25,
    "1,2,3\n" * 25,
    "1\n" * 25,
    '"1","x, y"\n' * 25,
    '"1\n' * 25,
    ",\n" * 25,
    "\x00\n" * 25,
    "é,ü\n" * 25,
    "inf,nan\n" * 25,
]


@pytest.mark.parametrize("head", HEADS)
def test_hostile_files(tmp_path, capsys, head):
    for i, body in enumerate(BODIES):
        path = tmp_path / f"t{i}.csv"
        path.write_text(f"{head}\n{body}", encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            code = main(["fit", str(path), "-o", str(tmp_path / "m.safetensors"), "--recipe", "maf", "--epochs", "1"])
        said = [line for line in capsys.readouterr().err.splitlines() if "warning" not in line]
        assert code in (0, 2)
        assert len(said) == (code == 2), said
        assert code == 0 or path.name in said[0], said


DTYPES = {
    "float64": lambda: np.random.default_rng(1).normal(size=ROWS),
    "float32": lambda: np.random.default_rng(1).normal(size=ROWS).astype(np.float32),
    "int64": lambda: np.arange(ROWS) % 7,
    "int8": lambda: (np.arange(ROWS) % 7).astype(np.int8),
    "uint16": lambda: (np.arange(ROWS) % 7 + 60_000).astype(np.uint16),
    "bool": lambda: np.arange(ROWS) % 3 == 0,
    "text": lambda: np.array(["oak", "elm", "ash"])[np.arange(ROWS) % 3],
    "codes": lambda: np.array(["007", "010", "NA"])[np.arange(ROWS) % 3],
    "date": lambda: pd.date_range("2024-01-01", periods=ROWS),
    "time": lambda: pd.date_range("2024-01-01 03:04:05", periods=ROWS, freq="37min"),
    "zoned": lambda: pd.date_range("2024-03-30", periods=ROWS, freq="h", tz="Europe/Berlin"),
    "category": lambda: pd.Categorical(np.array(["low", "high"])[np.arange(ROWS) % 2]),
    "nullable": lambda: pd.array(np.arange(ROWS) % 5, dtype="Int64"),
    "arrow": lambda: pd.array(np.arange(ROWS) / 4, dtype="float64[pyarrow]"),
}


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "csv.gz", "parquet", "feather"])
def test_what_the_program_writes_it_reads(tmp_path, ending):
    from diffeo.cli.files import Writer

    frame = pd.DataFrame({name: make() for name, make in DTYPES.items()})
    path = tmp_path / f"t.{ending}"
    with Writer(path) as writer:
        writer.write(frame.iloc[:11])
        writer.write(frame.iloc[11:])
    found = pd.concat(list(read_blocks(path, 7, text=["text", "codes", "category"])), ignore_index=True)
    for name, column in frame.items():
        got, expected = found[name].tolist(), column.tolist()
        if name == "float32":
            got, expected = np.float32(got).tolist(), np.float32(expected).tolist()
        assert got == expected, name


def test_names_of_separators():
    assert Dialect("tab").checked().separator == "\t"
    for wrong in (Dialect("ab"), Dialect(decimal="x"), Dialect(",", ",")):
        with pytest.raises(ValueError, match="--"):
            wrong.checked()
    assert len(list(itertools.islice(HEADS, 10))) * len(BODIES) == 60
