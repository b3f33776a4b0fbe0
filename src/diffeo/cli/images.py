"""`diffeo images`: flows of pictures, from a folder to samples, scores, interpolations and edits."""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from diffeo.cli.app import MODEL, RecipeOption, app, checkpoint_of, parse_duration, recipe_options

images = typer.Typer(
    rich_markup_mode=None,
    name="images",
    help="Flows of pictures: fit, score, sample, edit, upscale, …",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(images)

FEWEST = 20  # pictures
HELD = 2000  # pictures at most that score, and that validate
WIDEST = 4096  # numbers of a picture, at most, whose Gaussian is fitted to compare with
Model = Annotated[Path, typer.Argument(help="Model file, as `diffeo images fit` writes.", show_default=False)]
Output = Annotated[Path, typer.Option("-o", "--output", help="Picture to write: .png, or .gif for an animation.")]
Size = Annotated[
    int | None, typer.Option(help="Scale and crop to this side.", show_default="as they are", min=2, max=4096)
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out files that cannot be used, and count them.")]
Class = Annotated[str | None, typer.Option("--class", help="Class of the pictures.", show_default="each in turn")]
Seed = Annotated[int, typer.Option(help="Seed.", min=0, max=2**32 - 1)]


@images.command(epilog="Example:  diffeo images fit photos/ -o photos.safetensors --size 32 --time-limit 15m")
def fit(
    pictures: Annotated[Path, typer.Argument(help="Folder of pictures, or an .npz file.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="Model file to write.")] = Path("images.safetensors"),
    recipe: Annotated[
        str,
        typer.Option(
            help="Which flow: glow, realnvp_image, nice_image, residual_image, flowpp, tarflow, or srflow to upscale."
        ),
    ] = "glow",
    preset: Annotated[str, typer.Option(help="Size of the flow: tiny, small or paper.")] = "small",
    option: RecipeOption = None,
    classes_from_folders: Annotated[
        bool, typer.Option("--classes-from-folders", help="The folder of a picture is its class.")
    ] = False,
    size: Size = None,
    levels: Annotated[int, typer.Option(help="Shades that are told apart.", min=2, max=256)] = 256,
    noise: Annotated[
        float,
        typer.Option(
            help="Gaussian noise in training, as a share of half the range: 0.3 gives clearer samples, but no bits.",
            min=0.0,
        ),
    ] = 0.0,
    skip_bad: SkipBad = False,
    steps: Annotated[int | None, typer.Option(help="Training steps.", show_default="by size", min=1)] = None,
    time_limit: Annotated[
        str | None, typer.Option(help="Training time, as 90s, 5m or 1h.", show_default="none")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Pictures in a step.", min=1)] = 64,
    lr: Annotated[float, typer.Option(help="Peak learning rate.", min=0.0)] = 4e-3,
    flips: Annotated[bool, typer.Option("--flips", help="Mirror pictures left to right by chance.")] = False,
    shifts: Annotated[int, typer.Option(help="Move pictures by up to so many pixels by chance.", min=0)] = 0,
    samples_dir: Annotated[
        Path | None, typer.Option(help="Folder for sheets of samples as it goes.", show_default="none")
    ] = None,
    scale: Annotated[
        int | None, typer.Option(help="By how much srflow enlarges pictures: 2, 4 or 8.", show_default="4", min=2)
    ] = None,
    seed: Seed = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted fit.")] = False,
) -> None:
    """Fit a flow to pictures. Prints its bits per dimension on held-out ones beside simple baselines.

    With --noise there are no bits: it prints nats for each number of pictures with noise.
    """
    import shutil

    import numpy as np
    import torch

    import diffeo
    from diffeo.apps.images import fit as fit_images
    from diffeo.apps.images import picture_bits, scores, shrink
    from diffeo.cli.files import check_output
    from diffeo.recipes import check_options, find_recipe, recipes, takes

    check_output(output, (MODEL,), pictures)
    recipe = recipe.replace("-", "_")
    if recipe not in recipes("images"):
        raise ValueError(f"--recipe: expected one of {', '.join(recipes('images'))}, got {recipe!r}")
    asked = recipe_options(option or [])
    check_options(recipe, asked, apart=("shape", "preset", "noise", "classes", "levels", "scale"))
    if noise and not takes(recipe, "noise"):
        raise ValueError(f"--noise: --recipe {recipe} is trained without Gaussian noise")
    seconds = None if time_limit is None else parse_duration(time_limit)
    folder = checkpoint_of(output, resume)
    found = _read(pictures, size, classes_from_folders, skip_bad)
    if len(found.images) < FEWEST:
        what = f"{len(found.images)} picture{'s' * (len(found.images) != 1)}"
        raise ValueError(f"{pictures}: {what}; a density needs at least {FEWEST}")
    largest = int(found.images.max())
    coarse = levels < 256 and largest >= levels
    if largest and levels > 4 * (largest + 1):
        print(f"The largest value is {largest}: with --levels {largest + 1} the flow knows no others.", flush=True)
    x = _quantised(found.images, levels, coarse)
    enlarges, by = recipe == "srflow", scale or 4
    if scale is not None and not enlarges:
        raise ValueError("--scale: only --recipe srflow enlarges pictures")
    if enlarges and (by & (by - 1) or any(side % by for side in x.shape[2:])):
        raise ValueError(f"--scale {by}: expected 2, 4 or 8, which divides the sides {x.shape[2]} and {x.shape[3]}")
    if enlarges and (classes_from_folders or flips or shifts):
        raise ValueError("--recipe srflow: the program fits it without classes, flips and shifts")
    labels = shrink(x, by, levels) if enlarges else found.labels if len(found.classes) > 1 else None
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(x)))
    tenth = min(HELD, max(1, len(x) // 10))
    test, validation, train = order[:tenth], order[tenth : 2 * tenth], order[2 * tenth :]

    def of(index: Any) -> tuple[Any, Any]:
        return x[index], None if labels is None else labels[index]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        options: dict[str, Any] = (
            {"scale": by} if enlarges else {"classes": 0 if labels is None else len(found.classes)}
        )
        options |= asked
        if noise:
            options["noise"] = noise
        model: Any = find_recipe(recipe)(tuple(x.shape[1:]), preset=preset, levels=levels, **options)
    shape = "×".join(str(n) for n in x.shape[1:])
    count = sum(p.numel() for p in model.parameters())
    print(f"{len(x)} pictures of {shape}, {levels} shades; {recipe}, {preset}: {count:,} parameters.", flush=True)
    training: dict[str, Any] = {} if steps is None else {"steps": steps}
    result = fit_images(
        model, *of(train), validation=of(validation), batch_size=batch_size, lr=lr, time_limit=seconds, seed=seed,
        checkpoint=folder, resume=resume, flips=flips, shifts=shifts, samples_dir=samples_dir, **training,
    )  # fmt: skip
    notes = {"classes": list(found.classes) if labels is not None and not enlarges else [], "coarse": coarse}
    rows = []
    if not noise:
        rows.append((recipe, float(picture_bits(model, *of(test), seed=seed).mean())))
        # without classes, as `score` has pictures
        notes["held_out"] = picture_bits(model, x[torch.cat([test, validation])], seed=seed).tolist()
    diffeo.save(model, output, notes=notes)
    shutil.rmtree(folder, ignore_errors=True)
    why = {"steps": "as planned", "patience": "no better on held-out pictures", "time_limit": "time limit reached"}
    print(f"{result.steps} steps on {len(train)} pictures in {result.seconds:.0f} s ({why[result.stopped]}).")
    if noise:
        with torch.no_grad():
            generator = torch.Generator().manual_seed(seed)
            each = [model.log_prob(*of(some), generator=generator) for some in test.split(batch_size)]
        nats = -float(torch.cat(each).mean())
        print(f"{nats / math.prod(x.shape[1:]):.3f} nats a number of {len(test)} test pictures with noise.")
    else:
        print(f"Bits per dimension of {len(test)} test pictures (lower is better):", flush=True)
        if x[0].numel() <= WIDEST:
            rows.append(("Gaussian", scores.gaussian_bits(x[train], x[test], seed)))
        rows.append(("histogram", scores.histogram_bits(x[train], x[test], levels)))
        for name, value in rows:
            print(f"  {name:<16}{value:8.3f}")
    print(f"Wrote {output}.")


@images.command()
def score(
    model: Model,
    pictures: Annotated[Path, typer.Argument(help="Folder, picture or .npz file.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="CSV to write.", show_default="standard output")
    ] = None,
    size: Size = None,
    skip_bad: SkipBad = False,
    seed: Seed = 0,
) -> None:
    """Write how likely each picture is. In bits per dimension, and as a rank among held-out ones.

    percentile: share of held-out pictures that are at least as likely. typicality: share of them at least as far from
    their median: small for pictures that are too unlikely, and for those that are too likely.
    """
    import torch

    from diffeo.apps import images as tools
    from diffeo.cli.files import check_output
    from diffeo.storage import replacing

    check_output(output, (".csv",), model, pictures)
    density, notes = _load(model)
    found = _read(pictures, size, False, skip_bad)
    ranked = tools.score(density, _for(density, notes, found.images, model), torch.tensor(notes["held_out"]), seed=seed)
    columns = zip(found.names, *(v.tolist() for v in ranked), strict=True)
    rows = [["picture", *ranked._fields], *([name, *(f"{v:.4g}" for v in values)] for name, *values in columns)]
    if output is None:
        csv.writer(sys.stdout, lineterminator="\n").writerows(rows)
        return
    with replacing(output) as temporary, temporary.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    print(f"Wrote {output}.")


@images.command()
def sample(
    model: Model,
    output: Output = Path("samples.png"),
    n: Annotated[int, typer.Option("-n", help="How many.", min=1)] = 36,
    label: Class = None,
    temperature: Annotated[float, typer.Option(help="Scales the noise; below 1 for plainer pictures.", min=0)] = 1.0,
    seed: Seed = 0,
) -> None:
    """Draw pictures and write them as a grid."""
    import torch

    from diffeo.apps import images as tools

    _check_picture(output, model)
    density, notes = _load(model, "sample")
    labels = _labels(notes, label, n)
    drawn = tools.sample(density, n, labels, temperature=temperature, generator=torch.Generator().manual_seed(seed))
    _write(density, drawn, output, columns=len(notes["classes"]) if label is None and notes["classes"] else None)


@images.command()
def interpolate(
    model: Model,
    a: Annotated[Path, typer.Argument(help="First picture.", show_default=False)],
    b: Annotated[Path, typer.Argument(help="Last picture.", show_default=False)],
    output: Output = Path("interpolation.png"),
    steps: Annotated[int, typer.Option(help="Pictures in a row.", min=2)] = 8,
    label: Class = None,
    size: Size = None,
) -> None:
    """Write pictures between two. A row as .png, an animation as .gif."""
    from diffeo.apps import images as tools

    _check_picture(output, model, a, b)
    density, notes = _load(model, "interpolate")
    ends = [_for(density, notes, _read_one(path, size), model)[0] for path in (a, b)]
    context = _one_label(density, notes, label, ends[0])
    _write(density, tools.interpolate(density, *ends, steps=steps, context=context), output, columns=steps)


@images.command()
def edit(
    model: Model,
    picture: Annotated[Path, typer.Argument(help="Picture to change.", show_default=False)],
    towards: Annotated[Path, typer.Option(help="Folder of pictures with the attribute.", show_default=False)],
    away_from: Annotated[
        Path | None,
        typer.Option(help="Folder of pictures without it.", show_default="the centre of all"),
    ] = None,
    amount: Annotated[float, typer.Option(help="How far, in units of the difference between the two.")] = 1.0,
    output: Output = Path("edited.png"),
    label: Class = None,
    size: Size = None,
) -> None:
    """Write a picture moved towards what other pictures show."""
    import torch

    from diffeo.apps import images as tools

    _check_picture(output, model, picture)
    density, notes = _load(model, "edit")
    if not math.isfinite(amount):
        raise ValueError(f"--amount: expected a finite number, got {amount}")
    x = _for(density, notes, _read_one(picture, size), model)
    context = _one_label(density, notes, label, x[0])
    with_it = _for(density, notes, _read(towards, size, False, None).images, model)

    def mean(images: Any) -> Any:  # each in its own class, so that the difference does not contain the class
        own = None if context is None else tools.likeliest_class(density, images, len(notes["classes"]))
        return tools.encode(density, images, own).mean(0)

    direction = mean(with_it)
    if away_from is not None:
        direction = direction - mean(_for(density, notes, _read(away_from, size, False, None).images, model))
    given = None if context is None else context.expand(1)
    _write(density, torch.cat([x, tools.edit(density, x, direction, amount, given)]), output)


@images.command()
def reconstruct(
    model: Model,
    pictures: Annotated[Path, typer.Argument(help="Folder, picture or .npz file.", show_default=False)],
    output: Output = Path("reconstructed.png"),
    size: Size = None,
) -> None:
    """Turn pictures into noise and back. Writes them, and prints the largest difference: 0 where nothing is lost."""
    from diffeo.apps import images as tools

    _check_picture(output, model)
    density, notes = _load(model, "reconstruct")
    x = _for(density, notes, _read(pictures, size, False, None).images, model)[:64]
    back = tools.reconstruct(density, x, _labels(notes, None, len(x)))
    print(f"Largest difference over {len(x)} pictures: {int((back - x.long()).abs().max())} of {density.levels} shades")
    _write(density, back, output)


@images.command()
def upscale(
    model: Model,
    pictures: Annotated[Path, typer.Argument(help="Small picture, or a folder of them.", show_default=False)],
    output: Output = Path("upscaled.png"),
    n: Annotated[int, typer.Option("-n", help="How many large pictures of each.", min=1)] = 5,
    temperature: Annotated[float, typer.Option(help="Scales the noise; 0 for the plainest picture.", min=0)] = 0.8,
    size: Size = None,
    seed: Seed = 0,
) -> None:
    """Write large pictures that small ones may come from. A row for each, beside its bicubic enlargement."""
    import torch

    from diffeo.apps import images as tools
    from diffeo.nets.features import enlarged

    _check_picture(output, model, pictures)
    density, notes = _load(model, "upscale")
    scale, (channels, height, width) = density.flow.encoder.scale, density.event
    known = (channels, height // scale, width // scale)
    small = _for(density, notes, _read(pictures, size, False, None).images, model, known)
    drawn = tools.upscale(density, small, n, temperature=temperature, generator=torch.Generator().manual_seed(seed))
    plain = enlarged(small.float(), scale).round().clamp(0, density.levels - 1).long()
    rows = torch.cat([plain[None], drawn]).transpose(0, 1).flatten(0, 1)
    _write(density, rows, output, columns=n + 1)


def _read(path: Path, size: int | None, by_folder: bool, skip_bad: bool | None) -> Any:
    from diffeo.apps.images import read

    found = read(path, size=size, by_folder=by_folder, skip_bad=skip_bad)
    for line in found.skipped:
        print(f"diffeo: left out: {line}", file=sys.stderr)
    if found.skipped:
        print(f"diffeo: {len(found.skipped)} files left out, {len(found.images)} used", file=sys.stderr)
    return found


def _read_one(path: Path, size: int | None) -> Any:
    """One picture, in a batch of it."""
    if path.is_dir():
        raise ValueError(f"{path}: a folder, expected one picture")
    images = _read(path, size, False, None).images
    if len(images) != 1:
        raise ValueError(f"{path}: {len(images)} pictures, expected one")
    return images


def _check_picture(output: Path, *inputs: Path) -> None:
    """Refuse a picture that could not be written, before any work."""
    from diffeo.cli.files import check_output

    check_output(output, (".png", ".gif"), *inputs)


def _load(path: Path, command: str = "score") -> tuple[Any, dict[str, Any]]:
    """A flow of pictures and its notes, or an error that says what the file is instead."""
    import diffeo
    from diffeo.nets import LowResolution
    from diffeo.recipes import read_notes

    model = diffeo.load(path)
    notes = read_notes(path)
    if not isinstance(model, diffeo.Dequantized | diffeo.Noisy) or "coarse" not in notes:
        raise ValueError(f"{path}: no flow of pictures, as `diffeo images fit` writes")
    if command == "score" and isinstance(model, diffeo.Noisy):
        raise ValueError(f"{path}: this flow was fitted with --noise, so it gives pictures no bits; fit one without")
    enlarges = isinstance(model.flow.encoder, LowResolution)
    if command == "upscale" and not enlarges:
        raise ValueError(f"{path}: this flow does not enlarge pictures; fit one by --recipe srflow")
    if command not in ("upscale", "score") and enlarges:
        raise ValueError(f"{path}: this flow enlarges pictures; use `diffeo images upscale`")
    return model.eval(), notes


def _quantised(images: Any, levels: int, coarse: bool) -> Any:
    """Shades 0 … levels − 1: of 256, or as they are."""
    return (images.int() * levels // 256).to(images.dtype) if coarse else images


def _for(density: Any, notes: dict[str, Any], images: Any, model: Path, shape: Any = None) -> Any:
    """Pictures as the model knows them: its size, or another shape, its channels, its shades."""
    channels, height, width = density.event if shape is None else shape
    if images.shape[1] == 1 and channels == 3:
        images = images.expand(-1, 3, -1, -1)
    if tuple(images.shape[1:]) != (channels, height, width):
        raise ValueError(
            f"{model}: it knows pictures of {channels}×{height}×{width} (channels, height, width), not "
            f"{'×'.join(str(n) for n in images.shape[1:])}" + (f"; try --size {height}" if height == width else "")
        )
    if not notes["coarse"] and int(images.max()) >= density.levels:
        raise ValueError(f"{model}: it knows shades 0 … {density.levels - 1}, but these pictures go to {images.max()}")
    shades = _quantised(images, density.levels, notes["coarse"])
    if images.any() and not shades.any():
        raise ValueError(f"{model}: to it these pictures are black: they go to {images.max()}, where white is 255")
    return shades


def _labels(notes: dict[str, Any], name: str | None, n: int) -> Any:
    """Labels of n pictures: of the class by that name, or of each in turn; None for a model without classes."""
    import torch

    classes = notes["classes"]
    if not classes:
        if name is not None:
            raise ValueError(f"--class: the model knows no classes, got {name!r}")
        return None
    if name is None:
        return torch.arange(n) % len(classes)
    if name not in classes:
        raise ValueError(f"--class: the model knows {', '.join(classes)}, got {name!r}")
    return torch.full((n,), classes.index(name))


def _one_label(density: Any, notes: dict[str, Any], name: str | None, image: Any) -> Any:
    """The label of the class by that name, or of the class under which the picture is most likely."""
    from diffeo.apps.images import likeliest_class

    found = _labels(notes, name, 1)
    if found is None or name is not None:
        return None if found is None else found[0]
    return likeliest_class(density, image[None], len(notes["classes"]))[0]


def _write(density: Any, pictures: Any, output: Path, columns: int | None = None) -> None:
    from diffeo.apps.images import grid, write

    scale = max(1, 256 // (max(density.event[1:]) * (columns or round(len(pictures) ** 0.5) or 1)))
    if output.suffix.lower() == ".gif":
        write([grid(p[None], levels=density.levels, scale=max(1, 128 // density.event[1])) for p in pictures], output)
    else:
        write(grid(pictures, columns, density.levels, scale), output)
    print(f"Wrote {output}.")
