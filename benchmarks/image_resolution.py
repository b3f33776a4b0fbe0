"""Super-resolution of photographs: a flow beside bicubic enlargement and the same encoder trained by absolute error.

Part `srflow` of image_uses.py.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

import diffeo
from diffeo.apps.images import grid, shrink, upscale
from diffeo.apps.images.resolution import corrected
from diffeo.nets.features import enlarged
from results import IMAGES, markdown

TRAIN_PHOTOS = ("astronaut", "rocket", "retina", "hubble_deep_field", "motorcycle", "china.jpg", "immunohistochemistry")
HELD_PHOTOS = ("coffee",)  # which decide what weights are kept
TEST_PHOTOS = ("chelsea", "flower.jpg")
CROP, SCALE = 32, 4
CROPS = 4000  # of each photograph to train on
LEAST_CONTRAST = 0.25  # that a crop keeps
LOOK = 20.0  # seconds after which the encoder alone is looked at
SHOWN = 6  # crops in the picture


def photographs(names: tuple[str, ...], generator: torch.Generator, count: int) -> Tensor:
    """Random crops of photographs that come with scikit-image and scikit-learn, as many of each."""
    import skimage.data
    from sklearn.datasets import load_sample_image

    crops = []
    for name in names:
        if name.endswith(".jpg"):
            photo = load_sample_image(name)
        elif name == "motorcycle":
            photo = skimage.data.stereo_motorcycle()[0]
        else:
            photo = getattr(skimage.data, name)()
        photo = torch.from_numpy(np.array(photo)[..., :3]).permute(2, 0, 1)
        rows = torch.randint(photo.shape[1] - CROP + 1, (count,), generator=generator)
        columns = torch.randint(photo.shape[2] - CROP + 1, (count,), generator=generator)
        crops += [photo[:, i : i + CROP, j : j + CROP] for i, j in zip(rows.tolist(), columns.tolist(), strict=True)]
    return torch.stack(crops)[torch.randperm(len(crops), generator=generator)]


def varied(crops: Tensor, generator: torch.Generator) -> Tensor:
    """Each crop in one of the eight positions of a square, its colours in another order, and with less contrast.

    Photographs differ in contrast by more than the few of them here do.
    """
    crops = torch.stack([crop[torch.randperm(3, generator=generator)] for crop in crops]).float()
    middle = crops.mean((-1, -2, -3), keepdim=True)
    share = LEAST_CONTRAST + (1 - LEAST_CONTRAST) * torch.rand(len(crops), 1, 1, 1, generator=generator)
    crops = (middle + share * (crops - middle)).round().to(torch.uint8)
    position = torch.randint(8, (len(crops),), generator=generator)
    found = crops.clone()
    for k in range(8):
        some = crops[position == k].rot90(k % 4, (-2, -1))
        found[position == k] = some.flip(-1) if k >= 4 else some
    return found


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, mean over pictures."""
    error = (a.double() - b.double()).square().mean((-1, -2, -3)).clamp_min(1e-2)
    return float((10 * torch.log10(255.0**2 / error)).mean())


def spectrum(images: Tensor) -> Tensor:
    """Mean logarithm of power in rings of equal frequency."""
    power = torch.fft.fft2(images.double() - images.double().mean((-1, -2), keepdim=True)).abs().square()
    frequency = torch.fft.fftfreq(CROP).abs()
    radius = (frequency[:, None].square() + frequency.square()).sqrt()
    ring = (radius * CROP).round().long().clamp_max(CROP // 2)
    rings = torch.zeros(CROP // 2 + 1).double()
    for r in range(1, CROP // 2 + 1):
        rings[r] = power[..., ring == r].mean()
    return rings[1:].log10()


def measure(seconds: float) -> dict[str, Any]:
    """Photographs 4×: the flow against bicubic enlargement and the same encoder trained by absolute error."""
    generator = torch.Generator().manual_seed(0)
    train = varied(photographs(TRAIN_PHOTOS, generator, CROPS), generator)
    held = varied(photographs(HELD_PHOTOS, generator, 500), generator)
    test = photographs(TEST_PHOTOS, generator, 100)
    small, small_held, small_test = (shrink(pictures, SCALE) for pictures in (train, held, test))
    torch.manual_seed(0)
    model = diffeo.srflow((3, CROP, CROP), scale=SCALE)
    encoder = model.flow.encoder
    plain = type(encoder)(3, encoder.size, scale=SCALE, scales=2, features=32, blocks=2)
    _train_plain(plain, (train, small), (held, small_held), seconds)
    encoder.load_state_dict(plain.state_dict())  # the flow starts from it, as in the paper
    diffeo.fit(
        model, train, small, validation=(held, small_held), batch_size=64, lr=1e-3, time_limit=seconds, epochs=1000,
        progress=False,
    )  # fmt: skip
    model.eval()
    with torch.no_grad():
        plainly = enlarged(small_test.float(), SCALE).clamp(0, 255).round()
        bicubic = corrected(plainly, small_test, SCALE)
        by_l1 = corrected(((plain(small_test)["guess"] + 1) * 127.5).clamp(0, 255), small_test, SCALE)
        likeliest = upscale(model, small_test, 1, temperature=0.0)[0]
        drawn = upscale(model, small_test, 8, temperature=0.8, generator=torch.Generator().manual_seed(0))
        raw, raw_likeliest = (
            upscale(model, small_test, 1, temperature=t, consistent=False, generator=torch.Generator().manual_seed(0))[
                0
            ]
            for t in (0.8, 0.0)
        )
        bits = diffeo.bits_per_dim(model, test, small_test, generator=torch.Generator().manual_seed(0))
    shown = [plain_pixels(small_test), bicubic, by_l1, likeliest, *drawn[:3], test]
    busiest = test.double().std((-1, -2, -3)).argsort(descending=True)[: len(test) // 2]
    chosen = busiest[:: len(busiest) // SHOWN][:SHOWN]
    rows = torch.stack([pictures[chosen] for pictures in shown], 1).flatten(0, 1)
    grid(rows, len(shown), scale=3).save(IMAGES / "upscaled.webp", lossless=True)
    truth = spectrum(test)
    spread = drawn.double().std(0).mean((-1, -2, -3))
    return {
        "psnr": {
            "bicubic, not corrected": psnr(plainly, test),
            "bicubic": psnr(bicubic, test),
            "encoder by L1": psnr(by_l1, test),
            "flow, temperature 0, not corrected": psnr(raw_likeliest, test),
            "flow, temperature 0": psnr(likeliest, test),
            "flow, temperature 0.8": psnr(drawn[0], test),
            "flow, mean of 8": psnr(drawn.double().mean(0), test),
        },
        "psnr_shrunk_again": {
            "temperature 0": psnr(shrink(likeliest, SCALE), small_test),
            "temperature 0.8": psnr(shrink(drawn[0], SCALE), small_test),
            "temperature 0.8, not corrected": psnr(shrink(raw, SCALE), small_test),
        },
        "pixel_spread": {"least": float(spread.min()), "mean": float(spread.mean())},
        "spectrum_distance": {
            "bicubic": float((spectrum(bicubic) - truth).abs().mean()),
            "encoder by L1": float((spectrum(by_l1) - truth).abs().mean()),
            "flow, temperature 0.8": float((spectrum(drawn[0]) - truth).abs().mean()),
        },
        "bits_per_dim": float(bits.mean()),
        "outside": float(((raw == 0) | (raw == 255)).double().mean()),
        "seconds": seconds,
    }


def plain_pixels(small: Tensor) -> Tensor:
    """Small pictures with each pixel as a square."""
    return small.repeat_interleave(SCALE, -1).repeat_interleave(SCALE, -2)


def _train_plain(encoder: Any, pairs: tuple[Tensor, Tensor], held: tuple[Tensor, Tensor], seconds: float) -> None:
    """The encoder's guess by absolute error, for as long as the flow; the average of its weights that is best."""

    def error(net: Any, large: Tensor, small: Tensor) -> Tensor:
        return F.l1_loss(net(small)["guess"], large.float() / 127.5 - 1)

    optimizer = torch.optim.Adam(encoder.parameters(), 1e-3)
    average = torch.optim.swa_utils.AveragedModel(
        encoder, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995)
    )
    (large, small), best, kept = pairs, math.inf, encoder.state_dict()
    began, limit, next_look = time.monotonic(), seconds, LOOK
    while (spent := time.monotonic() - began) < limit:
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * 0.5 * (1 + math.cos(math.pi * spent / limit))
        index = torch.randint(len(large), (64,))
        optimizer.zero_grad()
        error(encoder, large[index], small[index]).backward()
        optimizer.step()
        average.update_parameters(encoder)
        if spent > next_look:
            next_look = spent + LOOK
            with torch.no_grad():
                found = float(error(average.module, *held))
            if found < best:
                best, kept = found, {name: t.clone() for name, t in average.module.state_dict().items()}
    encoder.load_state_dict(kept)
    encoder.eval()


def told(r: dict[str, Any]) -> str:
    quality = [[name, f"{value:.2f}"] for name, value in r["psnr"].items()]
    again = "; ".join(f"{name} {value:.1f}" for name, value in r["psnr_shrunk_again"].items())
    far = "; ".join(f"{name} {value:.2f}" for name, value in r["spectrum_distance"].items())
    spread = r["pixel_spread"]
    return f"""\
**Super-resolution**, 4×, 32×32 crops of photographs, by chance turned and mirrored, with other colours and with less
contrast, tested on photographs that were not trained on, as they are; another one decides which weights are kept. The
encoder learns by absolute error for {r["seconds"] / 60:.0f} minutes; from it, as in the paper, the flow starts, which
learns for as long. Pictures are corrected until they shrink to the small ones, where nothing else is said. PSNR in dB:

{markdown(["", "dB"], quality)}

Shrunk again, against the small picture, in dB: {again}. Spread of eight samples at temperature 0.8, in levels: mean
{spread["mean"]:.1f}, least of any crop {spread["least"]:.2f}. Distance of the radial spectrum from the true one, in
decades: {far}. Values at the ends of the range before correction: {100 * r["outside"]:.1f} %.

Six of the half with the most contrast; from left to right: shrunk, bicubic, the encoder by absolute error, the
flow at temperature 0, three of its samples at 0.8, the photograph:

![Six crops, enlarged in four ways](images/upscaled.webp)"""
