"""Pictures as arrays of whole numbers, from folders and files, and back as PNG and GIF."""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffeo.storage import replacing

MODES = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB", "RGBA": "RGB", "LA": "L"}  # modes, and what they are read as
TURNS = {  # orientations of EXIF, and what turns the picture upright
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE",
    8: "ROTATE_90",
}  # fmt: skip
DEEP = re.compile(r";16[BLNS]")  # 16 bits a channel, in either order of bytes
GAP = 2  # pixels between the pictures of a grid


class Pictures(NamedTuple):
    """Pictures of one size.

    Attributes:
        images: (n, C, H, W), whole numbers 0 … 255 as uint8.
        names: of each picture: its path in the folder, or its number in the file.
        labels: class of each picture, or None.
        classes: names of the classes, in the order of their labels.
        skipped: what was left out, a line each.
    """

    images: Tensor
    names: list[str]
    labels: Tensor | None = None
    classes: Sequence[str] = ()
    skipped: Sequence[str] = ()


def read(
    path: str | os.PathLike[str], *, size: int | None = None, by_folder: bool = False, skip_bad: bool | None = False
) -> Pictures:
    """The pictures of a folder and its subfolders but for hidden ones, of one file, or of an .npz file of arrays.

    Grey pictures have one channel, others three; if both are there, all have three. Photographs are turned upright by
    their EXIF orientation. An .npz file holds `images`, `x` or `X`, of shape (n, H, W), (n, H, W, 3) or (n, C, H, W),
    and perhaps `labels` or `y`.

    Args:
        path: where they are.
        size: side to which all are scaled and cropped around the centre, but not those of an .npz file; None: they
            must have one size.
        by_folder: the first folder below `path` is the class of a picture.
        skip_bad: leave out what cannot be used and say so in `skipped`, instead of an error; without `size` also
            pictures whose size is not the commonest. None: an error that does not name the option.

    Raises:
        ValueError: no picture; arrays of other channels, of another size, or without labels to go by; sizes that
            differ; files that are no pictures, truncated, animated, in CMYK, of 16 bits or partly transparent, each
            named.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    if path.suffix.lower() == ".npz":
        pictures = _from_arrays(path)
        height, width = pictures.images.shape[-2:]
        if size is not None and (height, width) != (size, size):
            raise ValueError(f"{path}: pictures of an .npz file keep their size, {width}×{height}")
        if by_folder and pictures.labels is None:
            raise ValueError(f"{path}: it holds no labels or y, and an .npz file has no folders of classes")
        return pictures
    advice = "" if skip_bad is None else " (--skip-bad leaves such files out)"
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if _is_file(p) and not _is_hidden(p, path))
    found: list[tuple[Path, np.ndarray]] = []
    skipped: list[str] = []
    for file in files:
        try:
            if by_folder and (path.is_file() or file.parent == path):
                raise ValueError(f"{file}: it lies in no folder of a class")
            found.append((file, _read_one(file, size)))
        except ValueError as error:
            if not skip_bad:
                raise ValueError(f"{error}{advice}") from None
            skipped.append(str(error))
    if not found:
        raise ValueError(f"{path}: no pictures" + (f"; {len(skipped)} files could not be used" if skipped else ""))
    found, others = _of_one_size(found)
    if others and not skip_bad:
        name, _, what = others[0].partition(": ")
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise ValueError(f"{name}{more}: {what}; --size gives all one size{advice}")
    skipped += others
    channels = max(array.shape[2] for _, array in found)
    arrays = [a if a.shape[2] == channels else np.repeat(a, channels, 2) for _, a in found]
    images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
    names = [str(file.relative_to(path)) if path.is_dir() else file.name for file, _ in found]
    if not by_folder:
        return Pictures(images, names, skipped=skipped)
    folders = [Path(name).parts[0] for name in names]
    classes = sorted(set(folders))
    return Pictures(images, names, torch.tensor([classes.index(f) for f in folders]), classes, skipped)


def _is_file(path: Path) -> bool:
    """Whether it is a file, or a link that leads nowhere, which is then named as one."""
    return path.is_file() or (path.is_symlink() and not path.exists())


def _is_hidden(file: Path, folder: Path) -> bool:
    """Whether it, or a folder on the way to it, is hidden, as what programs leave for themselves."""
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _of_one_size(found: list[tuple[Path, np.ndarray]]) -> tuple[list[tuple[Path, np.ndarray]], list[str]]:
    """The pictures that have the size of most, and a line about each other one."""
    (height, width), _ = Counter(array.shape[:2] for _, array in found).most_common(1)[0]
    kept = [one for one in found if one[1].shape[:2] == (height, width)]
    others = [one for one in found if one[1].shape[:2] != (height, width)]
    return kept, [f"{file}: {a.shape[1]}×{a.shape[0]} pixels, others have {width}×{height}" for file, a in others]


def _read_one(file: Path, size: int | None) -> np.ndarray:
    """One picture as (H, W, C), or an error that names it."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise ImportError("pictures need Pillow: pip install 'diffeo[images]'") from None
    try:
        with Image.open(file) as picture:
            if getattr(picture, "n_frames", 1) > 1:
                raise ValueError(f"{file}: an animation of {picture.n_frames} pictures; save one of them")
            if picture.mode not in MODES:
                kind = "in CMYK" if picture.mode == "CMYK" else f"of mode {picture.mode}"
                raise ValueError(f"{file}: a picture {kind}; convert it to RGB or grey with 8 bits")
            if _is_deep(picture.tile):
                raise ValueError(f"{file}: a picture of 16 bits; convert it to RGB or grey with 8 bits")
            picture.load()
            has_alpha = picture.mode in ("RGBA", "LA") or "transparency" in picture.info
            if has_alpha and np.asarray(picture.convert("RGBA"))[..., -1].min() < 255:
                raise ValueError(f"{file}: partly transparent; put it on a background first")
            turned = TURNS.get(picture.getexif().get(0x0112))
            plain = picture.convert(MODES[picture.mode])
            plain = plain if turned is None else plain.transpose(Image.Transpose[turned])
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        what = "no picture that can be read" if isinstance(error, UnidentifiedImageError) else f"damaged ({error})"
        raise ValueError(f"{file}: {what}") from None
    if size is not None:
        scale = size / min(plain.size)
        wide = plain.resize([max(size, round(n * scale)) for n in plain.size], Image.Resampling.LANCZOS)
        left, top = (wide.width - size) // 2, (wide.height - size) // 2
        plain = wide.crop((left, top, left + size, top + size))
    array = np.asarray(plain)
    return array[..., None] if array.ndim == 2 else array


def _is_deep(tiles: Any) -> bool:
    """Whether Pillow would cut pixels of 16 bits down to 8: it names them so in what it tells its decoder."""
    told = [argument for tile in tiles for argument in (tile[3] if isinstance(tile[3], tuple) else (tile[3],))]
    most = tiles and tiles[0][0] in ("ppm", "ppm_plain")  # which is told the largest value
    return any(DEEP.search(t) is not None if isinstance(t, str) else most and t > 255 for t in told)


def _from_arrays(path: Path) -> Pictures:
    try:
        with path.open("rb") as stream, np.load(stream) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, KeyError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: no file of arrays ({error})") from None
    name = next((n for n in ("images", "x", "X", "x_train") if n in arrays), None)
    if name is None:
        raise ValueError(f"{path}: expected an array named images, x or X; it holds {', '.join(arrays) or 'nothing'}")
    images = arrays[name]
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not len(images):
        raise ValueError(f"{path}: expected {name} of uint8, (n, H, W), (n, H, W, 3) or (n, C, H, W); got "
                         f"{images.dtype} {images.shape}")  # fmt: skip
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[-1] in (1, 3) and images.shape[1] not in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if images.shape[1] not in (1, 3):
        alpha = "; leave the alpha channel out" if 4 in (images.shape[1], images.shape[-1]) else ""
        raise ValueError(f"{path}: pictures have 1 or 3 channels, got {name} of shape {images.shape}{alpha}")
    labels = next((arrays[n] for n in ("labels", "y", "y_train") if n in arrays), None)
    names = [str(i) for i in range(len(images))]
    if labels is None:
        return Pictures(torch.from_numpy(np.ascontiguousarray(images)), names)
    if labels.shape != (len(images),):
        raise ValueError(f"{path}: {len(images)} pictures, but labels of shape {labels.shape}")
    classes, codes = np.unique(labels, return_inverse=True)
    return Pictures(
        torch.from_numpy(np.ascontiguousarray(images)), names, torch.from_numpy(codes), [str(c) for c in classes]
    )


def grid(images: Tensor, columns: int | None = None, levels: int = 256, scale: int = 1) -> Any:
    """Pictures beside and below each other, as one picture of Pillow.

    Args:
        images: (n, C, H, W), whole numbers 0 … levels − 1, of one or three channels.
        columns: how many in a row; None: as square as it gets.
        levels: of the values; the last is white.
        scale: how many times as large each pixel is drawn.
    """
    from PIL import Image

    n, channels, height, width = images.shape
    if channels not in (1, 3):
        raise ValueError(f"grid: pictures have 1 or 3 channels, got {channels}")
    columns = columns or max(1, round(n**0.5))
    rows = -(-n // columns)
    shades = (images.cpu().double() * (255 / (levels - 1))).round().clamp(0, 255).to(torch.uint8)
    board = torch.full((channels, rows * (height + GAP) - GAP, columns * (width + GAP) - GAP), 255, dtype=torch.uint8)
    for i, image in enumerate(shades):
        top, left = i // columns * (height + GAP), i % columns * (width + GAP)
        board[:, top : top + height, left : left + width] = image
    array = board.permute(1, 2, 0).numpy()
    picture = Image.fromarray(array[..., 0] if channels == 1 else array)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def write(pictures: Any | Sequence[Any], path: str | os.PathLike[str]) -> None:
    """Write a picture as PNG, or several as the frames of a GIF; the file appears whole or not at all.

    Raises:
        ValueError: another ending; several pictures as PNG.
    """
    path = Path(path)
    frames = list(pictures) if isinstance(pictures, Sequence) else [pictures]
    ending = path.suffix.lower()
    if ending not in (".png", ".gif") or (ending == ".png" and len(frames) > 1):
        raise ValueError(f"{path}: expected a .png for one picture, or a .gif")
    with replacing(path) as temporary:
        options: dict[str, Any] = {"save_all": True, "append_images": frames[1:], "duration": 120, "loop": 0}
        frames[0].save(temporary, format=ending[1:].upper(), **(options if len(frames) > 1 else {}))
