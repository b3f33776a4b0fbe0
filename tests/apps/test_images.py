"""Pictures: reading folders of every kind, and what people do with a trained flow, through the program too."""

from __future__ import annotations

import re
import struct
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_digits

import diffeo
from diffeo.apps import images as tools
from diffeo.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures")
    found = load_digits()
    for i, (image, label) in enumerate(zip(found.images[:300], found.target[:300], strict=True)):
        if label < 3:
            (path / "digits" / f"d{label}").mkdir(parents=True, exist_ok=True)
            shades = (image * 255 / 16).round().astype(np.uint8)
            Image.fromarray(shades).save(path / "digits" / f"d{label}" / f"{i:03}.png")
    call = ["images", "fit", str(path / "digits"), "-o", str(path / "m.safetensors"), "--preset", "tiny"]
    assert main([*call, "--classes-from-folders", "--levels", "16", "--steps", "40", "--batch-size", "32"]) == 0
    return path


def _damaged(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])


def _deep(path: Path) -> None:
    """A picture of three channels of 16 bits, which Pillow reads but does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress((b"\0" + b"\1\2" * 24) * 8)
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


BAD = {
    "cmyk.jpg": (lambda p: Image.new("CMYK", (8, 8)).save(p), "in CMYK"),
    "deep.png": (lambda p: Image.new("I;16", (8, 8)).save(p), "of mode I;16"),
    "text.png": (lambda p: p.write_text("no picture"), "no picture that can be read"),
    "empty.png": (lambda p: p.write_bytes(b""), "no picture that can be read"),
    "glass.png": (lambda p: Image.new("RGBA", (8, 8), (1, 2, 3, 99)).save(p), "partly transparent"),
    "moves.gif": (
        lambda p: Image.new("L", (8, 8)).save(p, save_all=True, append_images=[Image.new("L", (8, 8), 99)]),
        "an animation of 2 pictures",
    ),
    "torn.png": (_damaged, "damaged"),
    "deep colours.png": (_deep, "of 16 bits"),
    "deep colours.ppm": (lambda p: p.write_bytes(b"P6 8 8 65535\n" + b"\1\2" * 192), "of 16 bits"),
    "deep letters.ppm": (lambda p: p.write_bytes(b"P3 2 1 65535 1 2 3 4 5 6\n"), "of 16 bits"),
    "hole.png": (lambda p: Image.new("P", (8, 8)).save(p, transparency=0), "partly transparent"),
    "wide.png": (lambda p: Image.new("L", (20, 8)).save(p), "20×8 pixels, others have 8×8"),
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_cannot_be_used_are_named_or_left_out(tmp_path, name, capsys):
    make, message = BAD[name]
    make(tmp_path / name)
    for i in range(3):
        Image.new("L", (8, 8), i).save(tmp_path / f"{i}.png")
    with pytest.raises(ValueError, match=message) as error:
        tools.read(tmp_path)
    assert name in str(error.value)
    found = tools.read(tmp_path, skip_bad=True)
    assert len(found.images) == 3
    assert len(found.skipped) == 1
    assert main(["images", "fit", str(tmp_path), "-o", str(tmp_path / "m.safetensors"), "--skip-bad"]) == 2
    assert "1 files left out, 3 used" in capsys.readouterr().err.replace("\n", " ")


def test_sizes_channels_and_classes(tmp_path):
    Image.new("L", (8, 10), 7).save(tmp_path / "grey.png")
    Image.new("RGB", (8, 10), (1, 2, 3)).save(tmp_path / "colour.png")
    found = tools.read(tmp_path)
    assert found.images.shape == (2, 3, 10, 8)
    assert found.names == ["colour.png", "grey.png"]
    assert (found.images[1] == 7).all()
    Image.new("L", (20, 10), 9).save(tmp_path / "wide.png")
    with pytest.raises(ValueError, match=r"wide.png: 20×10 pixels, others have 8×10; --size"):
        tools.read(tmp_path)
    assert tools.read(tmp_path, size=4).images.shape == (3, 3, 4, 4)
    with pytest.raises(ValueError, match=r"colour.png: it lies in no folder of a class \(--skip-bad"):
        tools.read(tmp_path, size=4, by_folder=True)
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match=r"gone.png: damaged"):
        tools.read(tmp_path, size=4)
    (tmp_path / "gone.png").unlink()
    for folder in ("a", "b", ".ipynb_checkpoints"):
        (tmp_path / folder).mkdir()
        Image.new("L", (8, 10), 7).save(tmp_path / folder / "1.png")
    classes = tools.read(tmp_path, by_folder=True, skip_bad=True)
    assert classes.classes == ["a", "b"]
    assert classes.labels.tolist() == [0, 1]
    assert len(classes.skipped) == 3
    for empty in (tmp_path / "nowhere", tmp_path / "empty"):
        if empty.name == "empty":
            empty.mkdir()
        with pytest.raises(ValueError, match=empty.name):
            tools.read(empty)


def test_arrays(tmp_path):
    x = np.random.default_rng(0).integers(0, 255, (5, 6, 4, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=x, labels=np.array(["b", "a", "b", "a", "a"]))
    found = tools.read(tmp_path / "a.npz")
    assert found.images.shape == (5, 3, 6, 4)
    assert np.array_equal(found.images[0].permute(1, 2, 0), x[0])
    assert found.classes == ["a", "b"]
    assert found.labels.tolist() == [1, 0, 1, 0, 0]
    np.savez(tmp_path / "b.npz", images=x.astype(float))
    np.savez(tmp_path / "c.npz", other=x)
    np.savez(tmp_path / "d.npz", images=x, labels=np.zeros(3))
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "e.npz").write_bytes(whole[: len(whole) // 2])
    torn = bytearray(whole)
    torn[len(whole) // 3] ^= 255
    (tmp_path / "f.npz").write_bytes(torn)
    wrong = (
        ("b", "uint8"),
        ("c", "images, x or X"),
        ("d", "labels of shape"),
        ("e", "no file of"),
        ("f", "no file of"),
        ("g", "alpha channel"),
        ("h", "1 or 3 channels"),
    )
    np.savez(tmp_path / "g.npz", images=np.zeros((5, 8, 8, 4), np.uint8))
    np.savez(tmp_path / "h.npz", images=np.zeros((5, 2, 8, 8), np.uint8))
    np.savez(tmp_path / "i.npz", images=x)
    with pytest.raises(ValueError, match="keep their size"):
        tools.read(tmp_path / "i.npz", size=4)
    with pytest.raises(ValueError, match="no labels or y"):
        tools.read(tmp_path / "i.npz", by_folder=True)
    for name, message in wrong:
        with pytest.raises(ValueError, match=message):
            tools.read(tmp_path / f"{name}.npz")


def test_photographs_stand_as_their_camera_was_held(tmp_path):
    picture = Image.new("L", (8, 4))
    picture.paste(255, (0, 0, 8, 1))
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by a quarter, clockwise
    picture.save(tmp_path / "a.png", exif=turned)
    image = tools.read(tmp_path).images[0, 0]
    assert image.shape == (8, 4)
    assert (image[:, -1] == 255).all()
    assert (image[:, :-1] == 0).all()
    for orientation in range(1, 9):  # as Pillow itself turns them
        turned[0x0112] = orientation
        picture.save(tmp_path / "a.png", exif=turned)
        with Image.open(tmp_path / "a.png") as stored:
            upright = np.asarray(ImageOps.exif_transpose(stored))
        assert np.array_equal(tools.read(tmp_path).images[0, 0], upright)
    entries = struct.pack("<HHIHHHHI4s", 0x0112, 3, 1, 6, 0, 0x011A, 2, 3, b"72")  # a resolution that is text
    picture.save(tmp_path / "a.png", exif=struct.pack("<2sHIH", b"II", 42, 8, 2) + entries + bytes(4))
    assert tools.read(tmp_path).images.shape == (1, 1, 8, 4)


def test_grids_and_files(tmp_path):
    images = torch.arange(4).reshape(4, 1, 1, 1).expand(4, 1, 3, 3)
    board = np.asarray(tools.grid(images, 2, levels=4))
    assert board.shape == (8, 8)
    assert [board[0, 0], board[0, 5], board[5, 0], board[5, 5]] == [0, 85, 170, 255]
    tools.write([tools.grid(images[i : i + 1], levels=4) for i in range(4)], tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as picture:
        assert picture.n_frames == 4
    with pytest.raises(ValueError, match=r"\.png for one picture"):
        tools.write(tools.grid(images), tmp_path / "a.tiff")


def test_noise_is_a_vector_that_one_can_reckon_with():
    found = load_digits()
    x = torch.from_numpy(found.images[:60]).to(torch.uint8).unsqueeze(1)
    model = diffeo.testing.perturbed(diffeo.glow((1, 8, 8), preset="tiny", layers=1, hidden=8, levels=17))
    model.initialize(x)
    z = tools.encode(model, x)
    assert z.shape == (60, 64)
    assert torch.equal(tools.decode(model, z), x.long())
    between = tools.interpolate(model, x[0], x[1], 5)
    assert torch.equal(between[0], x[0].long())
    assert torch.equal(between[-1], x[1].long())
    ink = x.float().mean((1, 2, 3))
    direction = tools.attribute_direction(model, x, ink)
    assert torch.equal(tools.edit(model, x, direction, 0.0), x.long())
    more, less = (tools.edit(model, x, direction, a).float().mean() for a in (2.0, -2.0))
    assert more > x.float().mean() > less
    both = tools.attribute_direction(model, x, ink > ink.median())
    halves = z[ink > ink.median()].mean(0) - z[ink <= ink.median()].mean(0)
    assert torch.allclose(both, halves, atol=1e-4)
    with pytest.raises(ValueError, match="of both kinds"):
        tools.attribute_direction(model, x, torch.ones(60, dtype=torch.bool))


def test_too_likely_is_untypical_too():
    held = torch.linspace(2, 4, 101)
    ranked = tools.typicality(torch.tensor([0.5, 3.0, 5.5]), held)
    assert ranked.typicality.tolist() == pytest.approx([0.0, 100.0, 0.0], abs=1)
    assert ranked.percentile.tolist() == pytest.approx([0.0, 50.0, 100.0], abs=1)


def test_the_program_from_samples_to_edits(folder, tmp_path, capsys):
    model, one = str(folder / "m.safetensors"), str(next((folder / "digits" / "d1").glob("*.png")))
    zero = str(next((folder / "digits" / "d0").glob("*.png")))
    for name, call in {
        "s.png": ["sample", model, "-n", "9"],
        "k.png": ["sample", model, "--class", "d2", "-n", "4", "--temperature", "0.5"],
        "i.gif": ["interpolate", model, zero, one, "--steps", "4"],
        "e.png": ["edit", model, one, "--towards", str(folder / "digits" / "d0"), "--away-from",
                  str(folder / "digits" / "d1")],
        "r.png": ["reconstruct", model, str(folder / "digits")],
    }.items():  # fmt: skip
        assert main(["images", *call, "-o", str(tmp_path / name)]) == 0
        with Image.open(tmp_path / name) as picture:
            picture.load()
    assert "Largest difference over 64 pictures: 0 of 16 shades" in capsys.readouterr().out
    assert main(["images", "score", model, str(folder / "digits" / "d1")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "picture,bits_per_dim,percentile,typicality"
    assert all(0 < float(line.split(",")[1]) < 8 for line in lines[1:])
    assert main(["images", "score", model, str(folder / "digits")]) == 0  # ranked by the same number: without classes
    ranks = [float(line.split(",")[2]) for line in capsys.readouterr().out.splitlines()[1:]]
    assert 30 < np.mean(ranks) < 70


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (["sample", "{m}", "--class", "d7"], "the model knows d0, d1, d2"),
        (["sample", "{m}", "-o", "x.tiff"], "ends in .png or .gif"),
        (["score", "{m}", "{digits}", "-o", "x.txt"], "ends in .csv"),
        (["score", "{m}", "{wide}"], "try --size 8"),
        (["score", "{table}", "{wide}"], "no flow of pictures"),
        (["fit", "{wide}", "-o", "{out}"], "1 picture; a density needs at least 20"),
        (["fit", "{digits}", "-o", "{out}", "--recipe", "nsf"], "expected one of flowpp"),
        (["fit", "{digits}", "-o", "{out}", "--size", "9"], "cannot be halved 2 times"),
        (["fit", "{digits}", "-o", "{out}", "--option", "peak=much"], "expected peak >= 0, or None, got 'much'"),
        (["edit", "{m}", "{wide}", "--towards", "{digits}", "--amount", "nan"], "--amount: expected a finite number"),
        (["edit", "{m}", "{digits}", "--towards", "{digits}"], "a folder, expected one picture"),
        (["interpolate", "{m}", "{digits}", "{wide}"], "a folder, expected one picture"),
    ],
)
def test_wrong_calls_in_one_line(folder, tmp_path, capsys, call, message):
    Image.new("L", (20, 10), 9).save(tmp_path / "wide.png")
    diffeo.save(diffeo.maf(2), tmp_path / "t.safetensors")
    places = {
        "m": folder / "m.safetensors", "wide": tmp_path / "wide.png", "table": tmp_path / "t.safetensors",
        "digits": folder / "digits", "out": tmp_path / "o.safetensors",
    }  # fmt: skip
    assert main(["images", *(word.format(**places) for word in call)]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert message in error
    assert not (tmp_path / "o.safetensors").exists()


def test_info_says_what_a_flow_of_pictures_knows(folder, capsys):
    assert main(["info", str(folder / "m.safetensors")]) == 0
    told = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in capsys.readouterr().out.splitlines() if "  " in line)
    assert told["flow"].startswith("glow(shape=[1, 8, 8]")
    assert told["pictures"].startswith("1×8×8")
    assert told["classes"] == "d0, d1, d2"
    assert told["shades"] == "16"


def test_flips_and_shifts_move_pictures_in_training_only():
    objective = tools.Augmented(diffeo.nice_image((1, 4, 4), preset="tiny"), flips=True, shifts=1)
    x = torch.arange(16.0).reshape(1, 1, 4, 4).expand(200, -1, -1, -1)
    moved = objective.moved(x)
    assert len(moved.unique(dim=0)) == 2 * 9
    assert (moved == x.flip(-1)).all((1, 2, 3)).any()
    only = tools.Augmented(objective.density, flips=True).moved(x)
    assert {tuple(p.flatten().tolist()) for p in only} == {tuple(p.flatten().tolist()) for p in (x[0], x[0].flip(-1))}
    with pytest.raises(ValueError, match="shifts >= 0"):
        tools.Augmented(objective.density, shifts=-1)
    with pytest.raises(ValueError, match="not those of the context"):
        tools.fit(diffeo.srflow((1, 8, 8), preset="tiny"), x, x[..., :2, :2], flips=True)


def test_sheets_of_samples_appear_and_do_not_change_the_fit(tmp_path):
    images = torch.randint(4, (120, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    weights = []
    for folder in (None, tmp_path / "sheets"):
        torch.manual_seed(0)
        model = diffeo.nice_image((1, 4, 4), preset="tiny", hidden=4, layers=2, levels=4)
        tools.fit(model, images, shifts=1, samples_dir=folder, epochs=2, batch_size=20, progress=False)
        weights.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(*weights)
    sheets = sorted((tmp_path / "sheets").iterdir())
    assert sheets
    with Image.open(sheets[0]) as sheet:
        assert sheet.mode == "L"


def test_sheets_of_classes_know_the_labels_of_a_dataset(tmp_path):
    class Labelled(torch.utils.data.Dataset):
        def __len__(self):
            return 60

        def __getitem__(self, i):
            return torch.full((1, 4, 4), i % 4), torch.tensor(i % 2)

    images, labels = (torch.stack(part) for part in zip(*(Labelled()[i] for i in range(60)), strict=True))
    loader = torch.utils.data.DataLoader(Labelled(), batch_size=20, shuffle=True)
    plain = torch.utils.data.TensorDataset(images)
    for i, (given, context) in enumerate([(Labelled(), None), (loader, None), (plain, labels), (images, labels)]):
        model = diffeo.nice_image((1, 4, 4), preset="tiny", hidden=4, layers=2, levels=4, classes=2)
        held = {} if i != 1 else {"validation": (images[:20], labels[:20])}
        size = {} if i == 1 else {"batch_size": 20}
        sheets = tmp_path / str(i)
        tools.fit(model, given, context, flips=True, samples_dir=sheets, epochs=1, progress=False, **size, **held)
        assert sorted(sheets.iterdir())


def test_pictures_of_a_dataset_do_not_move_without_those_that_come_with_them():
    pairs = torch.utils.data.TensorDataset(torch.zeros(9, 3, 16, 16), torch.zeros(9, 3, 4, 4))
    with pytest.raises(ValueError, match="but not those of the context"):
        tools.fit(diffeo.srflow((3, 16, 16), scale=4, preset="tiny"), pairs, flips=True, progress=False)


def test_drawing_by_a_prepared_copy_changes_nothing():
    model = diffeo.testing.perturbed(diffeo.glow((1, 8, 8), preset="tiny", levels=17, classes=2)).eval()
    labels = torch.arange(6) % 2
    model.initialize(torch.randint(17, (6, 1, 8, 8)), labels)
    one, other = (
        draw(6, labels, temperature=0.8, generator=torch.Generator().manual_seed(0))
        for draw in (model.sample, partial(tools.sample, model))
    )
    assert one.shape == (6, 1, 8, 8)
    assert (one != other).float().mean() < 0.01  # numbers that rounding takes over the edge of a level


def test_enlarged_pictures_shrink_to_what_they_came_from():
    torch.manual_seed(0)
    model = diffeo.srflow((3, 16, 16), scale=4, preset="tiny")
    large = torch.randint(256, (40, 3, 16, 16))
    small = tools.shrink(large, 4)
    assert small.shape == (40, 3, 4, 4)
    diffeo.fit(model, large, small, steps=3, progress=False)
    drawn = tools.upscale(model, small[:2], 3)
    assert drawn.shape == (3, 2, 3, 16, 16)
    assert (drawn[0] != drawn[1]).any()
    again = tools.shrink(drawn.flatten(0, 1), 4).reshape(3, 2, 3, 4, 4)
    assert (again - small[:2]).float().square().mean() < 2.0  # of 256 levels: above 45 dB
    likeliest = tools.upscale(model, small[:2], 2, temperature=0.0)
    assert torch.equal(likeliest[0], likeliest[1])
    labelled = diffeo.srflow((3, 16, 16), scale=4, preset="tiny", classes=2)
    labels = torch.tensor([0, 1])
    labelled.initialize(large[:2], {"features": small[:2], "label": labels})
    assert tools.upscale(labelled, small[:2], 3, labels).shape == (3, 2, 3, 16, 16)
    assert tools.score(labelled, large[:2], torch.zeros(3), labels).bits_per_dim.shape == (2,)
    with pytest.raises(ValueError, match="this model reads the labels"):
        tools.upscale(labelled, small[:2])
    with pytest.raises(ValueError, match="this model reads no labels"):
        tools.upscale(model, small[:2], 3, labels)
    with pytest.raises(ValueError, match=r'"label": …'):
        labelled(large[:2], small[:2])
    with pytest.raises(ValueError, match="does not enlarge"):
        tools.upscale(diffeo.nice_image((1, 8, 8), preset="tiny"), small)


@pytest.mark.parametrize(
    ("recipe", "sizes"),
    [
        ("nice_image", {"hidden": 8}),
        ("realnvp_image", {"hidden": 8, "blocks": 1}),
        ("glow", {"hidden": 8, "layers": 2}),
        ("glow", {"hidden": 8, "layers": 2, "univariate": "RationalQuadraticSpline"}),
        ("flowpp", {"hidden": 8, "attention": False}),
        ("residual_image", {"hidden": 8}),
        ("tarflow", {"width": 16, "layers": 1}),
    ],
)
def test_pictures_come_back_exactly(recipe, sizes):
    torch.manual_seed(0)
    x = torch.from_numpy(load_digits().images[:20]).to(torch.uint8).unsqueeze(1)
    model = getattr(diffeo, recipe)((1, 8, 8), preset="tiny", levels=17, **sizes)
    model = diffeo.testing.perturbed(model)
    model.initialize(x)
    with torch.no_grad():
        back = model.flow.transform.inverse(tools.encode(model, x))[0]
        arc = diffeo.apps.images.latents.arc(tools.encode(model, x[:2]), 3)
    assert next(model.parameters()).dtype == torch.float32
    # in float32 it is 1e-4; what a search finds may be rounded the other way for a conditioner
    assert (back - x - 0.5).abs().max() < (1e-5 if recipe == "flowpp" else 1e-9)
    torch.testing.assert_close(arc[[0, -1]], tools.encode(model, x[:2]), rtol=1e-12, atol=1e-12)


def test_guidance_makes_a_flow_of_its_own():
    model = diffeo.testing.perturbed(diffeo.tarflow((1, 4, 4), preset="tiny", width=16, classes=3, levels=4))
    x, y = torch.randint(4, (5, 1, 4, 4)), torch.tensor([0, 1, 2, 0, 1])
    pushed = tools.guided(model, 2.0)
    assert torch.allclose(tools.guided(model, 0.0).flow(x + 0.5, y), model.flow(x + 0.5, y))
    assert not torch.allclose(pushed.flow(x + 0.5, y), model.flow(x + 0.5, y))
    z = tools.encode(pushed, x, y)
    assert torch.equal(tools.decode(pushed, z, y), x)
    with pytest.raises(ValueError, match="no autoregressive layers"):
        tools.guided(diffeo.glow((1, 4, 4), preset="tiny"))


def test_the_program_enlarges_pictures(folder, tmp_path, capsys):
    model, sheet = tmp_path / "up.safetensors", tmp_path / "up.png"
    call = ["images", "fit", str(folder / "digits"), "-o", str(model), "--recipe", "srflow", "--scale", "2"]
    assert main([*call, "--preset", "tiny", "--steps", "3"]) == 0
    small = tools.shrink(tools.read(folder / "digits").images[:2], 2)
    (tmp_path / "small").mkdir()
    for i, image in enumerate(small):
        Image.fromarray(image[0].numpy()).save(tmp_path / "small" / f"{i}.png")
    assert main(["images", "upscale", str(model), str(tmp_path / "small"), "-n", "3", "-o", str(sheet)]) == 0
    with Image.open(sheet) as picture:
        assert picture.width > 4 * 8
    assert main(["images", "score", str(model), str(folder / "digits" / "d0")]) == 0
    capsys.readouterr()
    assert main(["images", "sample", str(model)]) != 0
    assert "use `diffeo images upscale`" in capsys.readouterr().err
    assert main(["images", "upscale", str(folder / "m.safetensors"), str(tmp_path / "small")]) != 0
    assert "does not enlarge" in capsys.readouterr().err
    assert main([*call, "--flips"]) != 0
    assert "without classes, flips and shifts" in capsys.readouterr().err


def test_the_likeliest_class_is_that_of_the_picture():
    torch.manual_seed(0)
    labels = torch.arange(200) % 2
    images = (torch.rand(200, 1, 4, 4) * 8).floor() + 8 * labels.reshape(-1, 1, 1, 1)  # dark ones and bright ones
    plain, noisy = (
        diffeo.glow((1, 4, 4), preset="tiny", scales=1, levels=16, classes=2, noise=noise) for noise in (0.0, 0.1)
    )
    for model in (plain, noisy):
        diffeo.fit(model, images.to(torch.uint8), labels, steps=60, progress=False)
        found = tools.likeliest_class(model, images, 2)
        assert (found == labels).double().mean() > 0.95


def test_a_flow_of_pictures_with_noise_draws_but_does_not_score(folder, tmp_path, capsys):
    model, digits = tmp_path / "noisy.safetensors", str(folder / "digits")
    call = ["images", "fit", digits, "-o", str(model), "--preset", "tiny", "--steps", "3", "--noise", "0.3"]
    assert main([*call, "--classes-from-folders"]) == 0
    assert "test pictures with noise" in capsys.readouterr().out
    assert main(["images", "sample", str(model), "--class", "d1", "-o", str(tmp_path / "s.png")]) == 0
    files = sorted(str(file) for file in (folder / "digits" / "d0").iterdir())[:2]
    assert main(["images", "interpolate", str(model), *files, "-o", str(tmp_path / "i.png")]) == 0
    capsys.readouterr()
    assert main(["images", "score", str(model), digits]) != 0
    assert "fitted with --noise" in capsys.readouterr().err
    assert main([*call, "--recipe", "flowpp"]) != 0
    assert "flowpp is trained without" in capsys.readouterr().err


def test_arguments_of_a_recipe_come_with_option(folder, tmp_path, capsys):
    call = ["images", "fit", str(folder / "digits"), "-o", str(tmp_path / "m.safetensors"), "--preset", "tiny"]
    spline = ["univariate=RationalQuadraticSpline", 'univariate_options={"bins": 3}', "layers=1"]
    words = [word for each in spline for word in ("--option", each)]
    assert main([*call, "--steps", "2", "--levels", "16", *words]) == 0
    arguments = diffeo.load(tmp_path / "m.safetensors").recipe.arguments
    assert arguments["univariate_options"] == {"bins": 3}
    assert arguments["layers"] == 1
    capsys.readouterr()
    assert main([*call, "--option", "classes=3"]) == 2
    assert "glow takes no option 'classes'; it takes scales, layers" in capsys.readouterr().err
    assert main([*call, "--option", "univariate=nope"]) == 2
    assert "unknown scalar map 'nope'" in capsys.readouterr().err


def test_a_fit_with_other_augmentation_is_another_fit(tmp_path):
    images = torch.randint(4, (60, 1, 4, 4), generator=torch.Generator().manual_seed(0))

    def model():
        return diffeo.nice_image((1, 4, 4), preset="tiny", hidden=4, layers=2, levels=4)

    options = {"epochs": 1, "progress": False, "checkpoint": tmp_path / "fit"}
    seen = []
    tools.fit(model(), images, flips=True, samples_dir=tmp_path / "s", on_evaluation=seen.append, **options)
    assert seen
    assert list((tmp_path / "s").iterdir())
    with pytest.raises(ValueError, match="made with another flow or data"):
        tools.fit(model(), images, shifts=1, resume=True, **options)


def test_a_fit_of_a_flow_with_other_arguments_is_another_fit(tmp_path):
    images = torch.randint(4, (60, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    options = {"epochs": 1, "progress": False, "checkpoint": tmp_path / "fit"}
    sizes = {"preset": "tiny", "hidden": 4, "layers": 2, "levels": 4}
    diffeo.fit(diffeo.nice_image((1, 4, 4), **sizes), images, **options)
    other = diffeo.nice_image((1, 4, 4), peak=None, **sizes)
    with pytest.raises(ValueError, match=r"nice_image's peak \(5.0, now null\)"):
        diffeo.fit(other, images, resume=True, **options)


def test_bits_of_pictures_with_other_levels_are_refused():
    model = diffeo.nice_image((1, 4, 4), preset="tiny", hidden=4, layers=2, levels=4)
    for wrong in (torch.full((2, 1, 4, 4), 4), torch.full((2, 1, 4, 4), 0.5), torch.full((2, 1, 4, 4), -1)):
        with pytest.raises(ValueError, match="bits_per_dim: expected whole numbers 0 … 3"):
            diffeo.bits_per_dim(model, wrong)


def test_what_cannot_be_drawn_is_refused_before_training(tmp_path):
    model = diffeo.nice_image((2, 4, 4), preset="tiny", hidden=4, layers=2, levels=4)
    with pytest.raises(ValueError, match="1 or 3 channels"):
        tools.fit(model, torch.randint(4, (60, 2, 4, 4)), samples_dir=tmp_path / "s", steps=1, progress=False)
    assert not model.flow.transform.parts[0].stages[0].parts[2].transform.initialized


def test_labels_that_no_class_has_are_refused():
    model = diffeo.glow((1, 4, 4), preset="tiny", classes=3, levels=4)
    with pytest.raises(ValueError, match="expected class labels 0 … 2, got -1 … 3"):
        model.sample(2, torch.tensor([3, -1]))
    x, column = torch.randint(4, (6, 1, 4, 4)), torch.arange(6).remainder(3).unsqueeze(1)
    given = {"context": column.squeeze(1), "generator": torch.Generator().manual_seed(0)}
    bits = diffeo.bits_per_dim(model, x, **given)
    given["generator"].manual_seed(0)
    assert torch.equal(bits, diffeo.bits_per_dim(model, x.numpy(), **given))
    for score in (diffeo.bits_per_dim, lambda *given: diffeo.fit(*given, steps=1, progress=False)):
        with pytest.raises(ValueError, match=r"abels have shape \(n,\)"):
            score(model, x, column)
    with pytest.raises(ValueError, match="one for each of the 6"):
        tools.edit(model, x, torch.zeros(16), torch.ones(5), column.squeeze(1))
    wide = model.double()
    assert wide.flow.given(torch.tensor(1)).sample().dtype == torch.float64
