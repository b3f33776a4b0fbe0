"""Training flows of pictures: flips and shifts, and sheets of samples as it goes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from diffeo.apps.images.pictures import grid, write
from diffeo.core import Density, Objective
from diffeo.functional import Context
from diffeo.kernels.private import tree_leaves, tree_map
from diffeo.training import FitResult
from diffeo.training import fit as fit_density

DRAWN = 36  # pictures of a sheet


class Augmented(Objective):
    """Maximum likelihood of pictures that are flipped and shifted anew at every step; held-out ones stay as they are.

    Args:
        density: of pictures.
        flips: whether each picture is mirrored left to right with a chance of one half.
        shifts: pixels by which it is moved at most, in either direction; its border is repeated.

    Raises:
        ValueError: negative shifts.
    """

    def __init__(self, density: Density, *, flips: bool = False, shifts: int = 0):
        super().__init__()
        if shifts < 0:
            raise ValueError(f"Augmented: expected shifts >= 0, got {shifts}")
        self.density, self.flips, self.shifts = density, flips, shifts

    def extra_repr(self) -> str:
        return f"flips={self.flips}, shifts={self.shifts}"

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        return -self.density(self.moved(x) if self.training else x, context)

    def moved(self, x: Tensor) -> Tensor:
        """The pictures (n, C, H, W), each flipped and shifted by chance."""
        n, _, height, width = x.shape
        rows, columns = (torch.arange(size, device=x.device).expand(n, size) for size in (height, width))
        if self.flips:
            columns = torch.where(torch.rand(n, 1, device=x.device) < 0.5, columns, columns.flip(-1))
        if self.shifts:
            by = torch.randint(-self.shifts, self.shifts + 1, (2, n, 1), device=x.device)
            rows, columns = (rows + by[0]).clamp(0, height - 1), (columns + by[1]).clamp(0, width - 1)
        image = torch.arange(n, device=x.device)[:, None, None]
        return x.movedim(1, -1)[image, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def fit(
    model: Density,
    images: Any,
    context: Any = None,
    *,
    flips: bool = False,
    shifts: int = 0,
    samples_dir: str | os.PathLike[str] | None = None,
    temperature: float = 0.8,
    on_evaluation: Callable[[FitResult], object] | None = None,
    **training: Any,
) -> FitResult:
    """`diffeo.fit` for pictures, with flips and shifts, and a sheet of samples after every evaluation.

    Args:
        model: a density of pictures, such as `diffeo.glow`.
        images: (n, C, H, W), whole numbers.
        context: labels, or what else the model reads; a Dataset or a DataLoader gives it with the pictures.
        flips, shifts: as of `Augmented`.
        samples_dir: folder for `00001000.png` and so on, samples after that many steps; None for none.
        temperature: of these samples.
        on_evaluation: called after each evaluation, and after the sheet.
        **training: as of `diffeo.fit`.

    Raises:
        ValueError: flips or shifts beside a context of pictures, which would have to move along; pictures that
            cannot be drawn; what `diffeo.fit` refuses.

    >>> import torch, diffeo
    >>> from diffeo.apps.images import fit
    >>> model = diffeo.nice_image((1, 4, 4), preset="tiny", levels=4)
    >>> fit(model, torch.randint(4, (60, 1, 4, 4)), flips=True, steps=3, progress=False).steps
    3
    """
    moved, given = flips or shifts, context
    if context is None and (moved or samples_dir is not None):
        given = _first_contexts(images, training.get("collate"))
    if moved and any(torch.as_tensor(leaf).ndim > 2 for leaf in tree_leaves(given) if leaf is not None):
        raise ValueError("fit: flips and shifts move the pictures, but not those of the context")
    objective = Augmented(model, flips=flips, shifts=shifts) if moved else model
    if samples_dir is None:
        return fit_density(objective, images, context, on_evaluation=on_evaluation, **training)
    folder, levels = Path(samples_dir), getattr(model, "levels", None) or 256
    folder.mkdir(parents=True, exist_ok=True)
    shape = torch.Size(n or 1 for n in model.event or ())
    grid(torch.zeros(1, *shape, dtype=torch.long), levels=levels)  # what cannot be drawn is refused before training
    shown = None if given is None else tree_map(lambda t: torch.as_tensor(t)[:DRAWN], given)
    count = DRAWN if shown is None else len(tree_leaves(shown)[0])

    def draw(result: FitResult) -> None:
        device = next(model.parameters()).device
        wanted = None if shown is None else tree_map(lambda t: t.to(device), shown)
        generator = torch.Generator(device).manual_seed(0)
        drawn = model.sample(count, wanted, temperature=temperature, generator=generator)
        write(grid(drawn, levels=levels), folder / f"{result.steps:08d}.png")
        if on_evaluation is not None:
            on_evaluation(result)

    return fit_density(objective, images, context, on_evaluation=draw, **training)


def _first_contexts(images: Any, collate: Callable[[list[Any]], Any] | None) -> Any:
    """What comes with the first pictures of a Dataset or a DataLoader as their context; None where nothing does."""
    if isinstance(images, DataLoader):
        with torch.random.fork_rng(devices=[]):  # a loader that shuffles takes random numbers to begin
            batch = next(iter(images))
    elif isinstance(images, Dataset) and not isinstance(images, IterableDataset):  # which `fit` refuses
        some: Any = images
        batch = (collate or default_collate)([some[i] for i in range(min(DRAWN, len(some)))])
    else:
        return None
    return batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else None
