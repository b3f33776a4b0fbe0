"""The small real uses of structured events: fitted, sampled, killed and resumed."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import diffeo
import structured


def test_a_flow_of_digits():
    model, result = structured.fit("digits", steps=150)
    first, last = result.history[0]["validation_loss"], result.validation_loss
    assert last < first
    # a Gaussian for each pixel, at the same dequantisation
    images, context = structured.digits()
    rows = images.flatten(1).double() + torch.rand(images.flatten(1).shape, dtype=torch.float64)
    gaussian = (0.5 * torch.log(2 * math.pi * math.e * rows.var(0))).sum()
    assert last < gaussian - 10
    wanted = {"classes": context["classes"][:5]}
    drawn = model.sample(5, wanted, generator=torch.Generator().manual_seed(0))
    assert drawn.shape == (5, 1, 8, 8)
    assert drawn.dtype == torch.int64
    assert model(images[:5], wanted).shape == (5,)
    z, _ = model.transform(images[:5].float() + 0.5, wanted)
    back, _ = model.transform.inverse(z, wanted)
    assert torch.allclose(back, images[:5] + 0.5, atol=1e-4)


@torch.no_grad()
def _nats_a_frame(model, x, context):
    return -float(model(x, context).sum() / context["mask"].sum())


def test_a_flow_of_sentences():
    model, result = structured.fit("sentences", steps=150)
    assert result.validation_loss < result.history[0]["validation_loss"]
    examples = [structured.Sentences(400)[i] for i in range(6)]
    x, context = diffeo.training.padded(examples)
    # letters sound as they do with a noise of 0.3: two numbers a frame
    best = 2 * (0.5 * math.log(2 * math.pi * math.e) + math.log(0.3))
    assert _nats_a_frame(model, x, context) < best + 0.3
    alone = torch.stack([model(x[None], {k: v[None] for k, v in c.items()})[0] for x, c in examples])
    assert torch.allclose(model(x, context), alone, atol=1e-4)
    drawn = model.sample(6, context, generator=torch.Generator().manual_seed(0))
    assert drawn.shape == x.shape
    assert (drawn[~context["mask"].squeeze(-1)] == 0).all()
    sounds = torch.tensor([-2.0, 0.0, 2.0])[context["letters"].argmax(-1)]
    assert (drawn[..., 0] - sounds)[context["mask"].squeeze(-1)].abs().mean() < 0.6


@pytest.mark.parametrize("kind", ["digits", "sentences"])
def test_killed_fits_resume_to_the_same_weights(kind, tmp_path):
    structured.train(kind, tmp_path / "whole", tmp_path / "whole.pt", 60)
    command = [sys.executable, structured.__file__, kind, tmp_path / "part", tmp_path / "never.pt", 60]
    killed = subprocess.Popen([*map(str, command)], env={**os.environ, "OMP_NUM_THREADS": "1"})
    state = tmp_path / "part" / "fit.safetensors"
    deadline = time.monotonic() + 100
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(20) == -signal.SIGKILL
    structured.train(kind, tmp_path / "part", tmp_path / "resumed.pt", 60)
    whole, resumed = (torch.load(tmp_path / name, weights_only=True) for name in ("whole.pt", "resumed.pt"))
    assert 0 < resumed["resumed"] < 60
    assert all(torch.equal(whole["state"][k], resumed["state"][k]) for k in whole["state"])
