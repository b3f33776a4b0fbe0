"""`fit`: data and arguments refused early, seeds, early stopping, resuming, bad numbers."""

from __future__ import annotations

import copy
import os
import signal
import time

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import diffeo
from diffeo.training import source
from diffeo.training.source import batch_index, split
from fit_worker import interrupt_in, run_worker, train


def rows(n=300, features=2, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, features))
    x[:, -1] += x[:, 0] ** 2
    return x


def small(features=2, **options):
    return diffeo.maf(features, layers=2, hidden=(16,), **options)


def weights(flow):
    return torch.cat([p.detach().flatten() for p in flow.parameters()])


def test_a_fit_beats_the_gaussian_and_reports_it():
    flow = small()
    result = diffeo.fit(flow, rows(2000), steps=400, lr=5e-3)
    start = result.history[0]
    assert result.steps == 400
    assert result.validation_loss < start["validation_loss"] - 0.1
    held = rows(2000)[split(2000, 0.1, 0)[1]]
    assert -flow(torch.tensor(held).float()).mean().item() == pytest.approx(result.validation_loss, abs=1e-4)
    assert not flow.training


def test_seeds_reproduce_and_the_callers_random_state_is_left_alone():
    torch.manual_seed(1)
    a = small(dropout=0.2)
    b = small(dropout=0.2)
    b.load_state_dict(a.state_dict())
    state = torch.get_rng_state()
    diffeo.fit(a, rows(), steps=20, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.randn(5)
    diffeo.fit(b, rows(), steps=20, seed=3)
    assert torch.equal(weights(a), weights(b))


def test_only_training_rows_set_the_data_dependent_layers():
    x = torch.tensor(rows()).float()
    flow = small()
    diffeo.fit(flow, x, steps=1)
    train, _ = split(len(x), 0.1, 0)
    assert torch.allclose(flow.transform.parts[0].mean, x[train].mean(0), atol=1e-6)


def test_early_stopping_keeps_the_best_weights():
    flow = diffeo.maf(5, layers=3, hidden=(64, 64))
    result = diffeo.fit(flow, rows(120, 5), epochs=1000, patience=3, lr=1e-2, weight_decay=0.0)
    assert result.stopped == "patience"
    assert result.best_step < result.steps
    assert result.validation_loss == min([e["validation_loss"] for e in result.history] + [result.validation_loss])


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ([0.0, -1.0, -2.0, -1.9], 2),  # the least of those that beat the first, though not by more than chance the next
        ([0.0, -1.0, -1.01, -1.02], 3),
        ([0.0, -0.01, 0.01, -0.02], 0),  # chance
        ([0.0, 1.0, -0.01, -1.0], 3),
    ],
)
def test_the_best_weights_that_beat_the_first_are_kept(losses, best):
    """Held-out rows differ by a tenth between evaluations, by chance."""

    class Scripted(diffeo.Objective):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))
            self.evaluations = 0

        def forward(self, x, context=None):
            if len(x) != 200:  # no evaluation
                return self.weight.square().expand(len(x))
            told = losses[min(self.evaluations, len(losses) - 1)]
            self.evaluations += 1
            noise = torch.randn(len(x), generator=torch.Generator().manual_seed(self.evaluations))
            return told + 0.1 * (noise - noise.mean()) * len(x) ** 0.5

        def initialize(self, x, context=None):
            pass

    told = []
    result = diffeo.fit(
        Scripted(), torch.randn(3000, 1), validation=torch.randn(200, 1), steps=150, progress=False, compile=False,
        on_evaluation=lambda result: told.append(result.steps),
    )  # fmt: skip
    steps = [0, *told]
    assert result.best_step == steps[best]


def test_what_wins_by_luck_is_not_kept():
    """Rows that the start describes exactly: no step can do better, though some do on 60 held-out rows."""
    torch.manual_seed(0)
    x = torch.randn(600, 2, generator=torch.Generator().manual_seed(0))
    flow = diffeo.nsf_ar(2, layers=2, hidden=(32, 32))
    result = diffeo.fit(flow, x, steps=300, validation=0.1, progress=False, compile=False)
    least = min(entry["validation_loss"] for entry in result.history)
    assert least <= result.validation_loss
    assert result.best_step == 0 or result.validation_loss - least < result.validation_stderr
    fresh = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert flow(fresh).mean() > diffeo.Normal(2)(fresh).mean() - 0.02


def test_eighty_rows_are_not_worse_than_the_gaussian():
    x = np.random.default_rng(0).normal(size=(580, 4))
    test = torch.tensor(x[80:]).float()
    flow, gaussian = diffeo.nsf_ar(4), diffeo.gaussian(4)
    diffeo.fit(flow, x[:80])
    diffeo.fit(gaussian, x[:80])
    assert flow(test).mean() > gaussian(test).mean() - 0.1


def test_weights_count_rows():
    x = np.concatenate([rows(200), rows(200) + 50])
    w = np.r_[np.ones(200), np.zeros(200)]
    flow = diffeo.Flow(diffeo.Chain(diffeo.Elementwise(diffeo.Affine(), 2)), diffeo.Normal(2))
    result = diffeo.fit(flow, x, weights=w, steps=300, lr=1e-2)
    plain = diffeo.Flow(diffeo.Chain(diffeo.Elementwise(diffeo.Affine(), 2)), diffeo.Normal(2))
    assert diffeo.fit(plain, x, steps=300, lr=1e-2).validation_loss > result.validation_loss + 1


def test_context_is_used():
    c = torch.randn(2000, 1)
    x = 3 * c + 0.1 * torch.randn(2000, 1)
    flow = diffeo.realnvp(1, context=1, layers=2, hidden=(32,))
    result = diffeo.fit(flow, x, c, steps=400, lr=5e-3)
    entropy_given = 0.5 * np.log(2 * np.pi * np.e * 0.01)
    assert result.validation_loss < entropy_given + 0.2


def test_a_flow_without_parameters_is_fitted_by_initialize():
    result = diffeo.fit(diffeo.gaussian(2), rows())
    assert result.steps == 0
    assert result.validation_loss is not None


def test_a_net_that_gives_its_parameters_as_they_are_is_fitted():
    learned = diffeo.nets.MLP(0, 2, n_params=2)  # of nothing: constants, handed out as a view
    everything = torch.zeros(2, dtype=torch.bool)
    flow = diffeo.Flow(diffeo.Coupling(everything, learned, diffeo.Affine()), diffeo.Normal(2))
    x = 3 + 2 * torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    diffeo.fit(flow, x, steps=200, lr=5e-2, progress=False)
    drawn = flow.sample(4000, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(drawn.mean(0), x.mean(0), atol=0.3)
    assert torch.allclose(drawn.std(0), x.std(0), atol=0.3)
    assert all(p.requires_grad for p in flow.parameters())


def test_a_loader_of_pictures_is_seen_by_numbers_and_not_by_rows(monkeypatch):
    """What data-dependent layers look at fits into memory, however large an event is."""
    monkeypatch.setattr(source, "SHOWN", 5 * 3 * 8 * 8)
    drawn = []

    class Pictures(torch.utils.data.Dataset):
        def __len__(self):
            return 1000

        def __getitem__(self, i):
            drawn.append(i)
            return torch.randn(3, 8, 8)

    for data in (DataLoader(Pictures(), 2), Pictures()):
        drawn.clear()
        x, *_ = source.as_source(data, None, None, torch.float32).sample()
        assert 5 <= len(x) == len({*drawn}) <= 6


def test_datasets_and_loaders():
    data = torch.tensor(rows()).float()
    assert diffeo.fit(small(), TensorDataset(data), steps=5).steps == 5

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return len(data)

        def __getitem__(self, i):
            return data[i]

    assert diffeo.fit(small(), Rows(), steps=5).steps == 5
    loader = DataLoader(Rows(), batch_size=30, shuffle=True)
    result = diffeo.fit(small(), loader, validation=data[:50], epochs=2)
    assert result.steps == 20
    with pytest.raises(ValueError, match="cannot be split"):
        diffeo.fit(small(), loader)


def test_long_epochs_are_looked_at_within_a_time_limit(monkeypatch):
    monkeypatch.setattr("diffeo.training.loop.GLANCING", 1.0)  # however slow the machine is at looking
    diffeo.fit(small(), rows(20_000), batch_size=1, steps=2, validation=0, compile=False)  # loads what first use loads
    seen = []
    result = diffeo.fit(
        small(), rows(20_000), batch_size=1, epochs=10, time_limit=2.0, validation=0, compile=False,
        on_evaluation=lambda found: seen.append(found.steps),
    )  # fmt: skip
    assert result.stopped == "time_limit"
    assert len(seen) >= 3
    assert seen == sorted(set(seen))
    assert seen[0] % 2000  # not after an epoch


def test_a_time_limit_ends_the_fit():
    began = time.monotonic()
    result = diffeo.fit(small(), rows(), steps=10**6, time_limit=1.0)
    assert result.stopped == "time_limit"
    assert time.monotonic() - began < 20
    assert result.history[-1]["lr"] < 1e-4


def test_the_progress_bar_is_silent_without_a_terminal(capsys):
    diffeo.fit(small(), rows(), steps=3)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == ""


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (np.array([["a", "b"]]), {}, "must hold numbers"),
        (np.zeros((0, 2)), {}, "no rows"),
        (np.array([[1.0, np.nan]] * 9), {}, r"9 values of x are NaN or infinite \(column 1: 9\)"),
        (np.c_[rows()[:, 0], np.ones(300)], {}, "columns \\[1\\] are constant"),
        (rows() + 1e9, {}, "vary too little around a large value"),
        (rows(), {"context": np.zeros((5, 1))}, "x has 300 rows, but the context has 5"),
        (rows(), {"weights": np.ones(5)}, "one weight for each"),
        (rows(), {"weights": -np.ones(300)}, "at least 0"),
        (rows(), {"validation": 1.5}, "validation must be a share"),
        (rows(), {"epochs": 0}, "epochs must be a positive integer"),
        (rows(), {"lr": -1.0}, "lr must be positive"),
        (rows(), {"compile": "maybe"}, "compile must be"),
        (rows(), {"resume": True}, "resume=True needs checkpoint="),
        (rows(300, 3), {}, "expected 2 features"),
        (None, {}, "expected rows"),
    ],
)
def test_bad_input_is_refused_before_training(x, options, message):
    with pytest.raises(ValueError, match=message):
        diffeo.fit(small(), x, **{"steps": 3, **options})


def test_a_float64_flow_is_trained_in_float64():
    flow = small().double()
    assert diffeo.fit(flow, rows(), steps=2).steps == 2
    assert {p.dtype for p in flow.parameters()} == {torch.float64}
    with pytest.raises(ValueError, match="64-true"):
        diffeo.fit(small().double(), rows(), steps=2, precision="32-true")
    assert diffeo.fit(small().double(), rows(), steps=2, precision="64-true").steps == 2


class Explodes(diffeo.LeakyReLU):
    """Finite for some calls, then not."""

    def __init__(self):
        super().__init__(0.5)
        self.shift = torch.nn.Parameter(torch.zeros(()))
        self.calls = 0

    def forward(self, x, context=None):
        self.calls += self.training
        z = x + self.shift
        return (z / 0.0 if self.calls > 5 and self.training else z), torch.zeros_like(x)


def test_a_non_finite_loss_names_layer_rows_and_checkpoint(tmp_path):
    flow = diffeo.Flow(diffeo.Chain(diffeo.Elementwise(diffeo.Affine(), 2), Explodes()), diffeo.Normal(2))
    with pytest.raises(diffeo.NonFiniteError, match="Explodes") as caught:
        diffeo.fit(flow, rows(), steps=20, batch_size=32, checkpoint=tmp_path / "c")
    error = caught.value
    assert error.step == 6
    assert "parts.1" in error.layer
    train, _ = split(300, 0.1, 0)
    index = next(batch_index(270, 32, 0, 5))
    assert error.rows == train[index].tolist()
    assert error.checkpoint == str(tmp_path / "c")
    assert weights(flow).isfinite().all()


def test_a_failed_start_leaves_the_flow_as_it_came():
    flow = small()
    with pytest.raises(ValueError, match="expected 2 features"):
        diffeo.fit(flow, 1e4 * rows(), validation=rows(20, 3))
    assert not flow.transform.parts[0].initialized
    with pytest.raises(ValueError, match="held-out loss is inf"):
        diffeo.fit(
            diffeo.Flow(diffeo.Elementwise(diffeo.Shift(), 2), diffeo.Uniform(torch.zeros(2), torch.ones(2))),
            np.full((50, 2), 0.5),
            validation=np.full((5, 2), 3.0),
        )


def test_rows_without_weight_do_not_set_the_data_dependent_layers():
    x = np.concatenate([rows(400), rows(400) * 100 + 500])
    w = np.r_[np.ones(400), np.zeros(400)]
    flow = small()
    diffeo.fit(flow, x, weights=w, steps=1)
    assert flow.transform.parts[0].mean.abs().max() < 3


def test_integers_beyond_float32_are_refused():
    stamps = np.c_[1_700_000_000 + np.arange(400), np.arange(400) % 7]
    with pytest.raises(ValueError, match=r"columns \[0\] of x vary too little"):
        diffeo.fit(small(), stamps)


def test_an_objective_of_ones_own_is_initialised():
    class Tempered(diffeo.Objective):
        def __init__(self, flow):
            super().__init__()
            self.flow = flow

        def forward(self, x):
            return -0.5 * self.flow(x)

    flow = small()
    diffeo.fit(Tempered(flow), rows() + 1000, steps=3)
    assert flow.transform.parts[0].initialized


@pytest.mark.parametrize("recipe", [diffeo.nsf, diffeo.nsf_ar, diffeo.maf])
def test_rare_values_and_collinear_columns_can_be_fitted(recipe):
    rare = np.c_[rows(200), np.arange(200) == 3, np.arange(200) == 77]
    assert diffeo.fit(recipe(4), rare, steps=2).steps == 2
    sign = np.sign(rows(200)[:, :1])
    assert diffeo.fit(recipe(2), np.c_[sign, sign], steps=2).steps == 2
    assert diffeo.fit(recipe(2), rows(5), steps=2).steps == 2


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_mixed_precision_trains_and_pure_half_precision_is_refused(precision):
    if precision == "bf16-true":
        with pytest.raises(ValueError, match="precision must be one of"):
            diffeo.fit(small(), rows(), steps=2, precision=precision)
    else:
        assert np.isfinite(diffeo.fit(diffeo.nsf(2), rows(), steps=5, precision=precision).validation_loss)


def test_a_killed_fit_resumes_to_the_same_weights(tmp_path):
    train(tmp_path / "whole", tmp_path / "whole.pt", 300, resume=False)
    killed = run_worker("train", tmp_path / "part", tmp_path / "never.pt", 300)
    state = tmp_path / "part" / "fit.safetensors"
    deadline = time.monotonic() + 100
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.15)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(20) == -signal.SIGKILL
    assert not (tmp_path / "never.pt").exists()
    train(tmp_path / "part", tmp_path / "resumed.pt", 300, resume=True)
    a, b = (torch.load(tmp_path / name, weights_only=True) for name in ("whole.pt", "resumed.pt"))
    assert 0 < b["resumed_steps"] < 300
    assert a["steps"] == b["steps"] == 300
    assert a["losses"] == b["losses"]
    assert all(torch.equal(a["state"][k], b["state"][k]) for k in a["state"])


def test_an_interrupted_fit_resumes_to_the_same_weights(tmp_path, monkeypatch):
    train(tmp_path / "whole", tmp_path / "whole.pt", 300, resume=False)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patched:
            interrupt_in(120, patched.setattr)
            with pytest.raises(KeyboardInterrupt):
                train(tmp_path / "part", tmp_path / "never.pt", 300, resume=False)
    finally:
        signal.signal(signal.SIGINT, before)
    train(tmp_path / "part", tmp_path / "resumed.pt", 300, resume=True)
    a, b = (torch.load(tmp_path / name, weights_only=True) for name in ("whole.pt", "resumed.pt"))
    assert 0 < b["resumed_steps"] < 300
    assert a["losses"] == b["losses"]
    assert all(torch.equal(a["state"][k], b["state"][k]) for k in a["state"])


def test_a_fit_interrupted_in_its_last_step_is_finished_and_says_so(tmp_path, monkeypatch):
    forward, calls = diffeo.MaximumLikelihood.forward, []

    def counting(self, *batch):
        calls.append(self.training)
        if self.training and sum(calls) == 10:
            os.kill(os.getpid(), signal.SIGINT)
        return forward(self, *batch)

    monkeypatch.setattr(diffeo.MaximumLikelihood, "forward", counting)
    flow, before = small(), signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            diffeo.fit(flow, rows(), steps=10, validation=0, checkpoint=tmp_path / "c")
    finally:
        signal.signal(signal.SIGINT, before)
    again = small()
    result = diffeo.fit(again, rows(), steps=10, validation=0, checkpoint=tmp_path / "c", resume=True)
    assert (result.steps, result.resumed_steps, result.stopped) == (10, 10, "steps")
    assert torch.equal(weights(again), weights(flow))


def test_checkpoint_folders(tmp_path):
    folder = tmp_path / "c"
    flow = small()
    first = diffeo.fit(flow, rows(), steps=10, checkpoint=folder)
    with pytest.raises(ValueError, match="not empty"):
        diffeo.fit(small(), rows(), steps=10, checkpoint=folder)
    again = small()
    loaded = diffeo.fit(again, rows(), steps=10, checkpoint=folder, resume=True)
    assert loaded.steps == first.steps
    assert torch.equal(weights(again), weights(flow))
    with pytest.raises(ValueError, match="batch_size"):
        diffeo.fit(small(), rows(), steps=10, batch_size=16, checkpoint=folder, resume=True)
    with pytest.raises(ValueError, match=r"another flow or data: maf's layers \(2, now 3\), flow"):
        diffeo.fit(diffeo.maf(2, layers=3, hidden=(16,)), rows(), steps=10, checkpoint=folder, resume=True)
    with pytest.raises(ValueError, match="another flow or data: values"):
        diffeo.fit(small(), rows(seed=1), steps=10, checkpoint=folder, resume=True)
    assert diffeo.fit(small(), rows(), steps=4, checkpoint=tmp_path / "new", resume=True).resumed_steps == 0


@pytest.mark.slow
def test_a_compiled_fit_agrees_with_an_eager_one():
    a, b = small(), small()
    b.load_state_dict(a.state_dict())
    eager = diffeo.fit(a, rows(), steps=30, compile=False)
    compiled = diffeo.fit(b, rows(), steps=30, compile=True)
    assert compiled.compiled
    assert not eager.compiled
    assert torch.allclose(weights(a), weights(b), atol=1e-4)


@pytest.mark.slow
def test_compiled_gradients_are_those_of_autograd():
    flow = small()
    flow.register_parameter("unused", torch.nn.Parameter(torch.zeros(3)))
    objective = diffeo.MaximumLikelihood(flow)
    gradients = diffeo.CompiledGradients(objective)
    for n, weighted in ((40, False), (40, True), (7, False)):
        x, w = torch.from_numpy(rows(n)).float(), torch.rand(n) if weighted else None
        loss = gradients(x, weights=w)
        got = [p.grad for p in flow.parameters()]
        flow.zero_grad()
        expected = (objective(x) if w is None else objective(x) * w).mean()
        expected.backward()
        assert torch.allclose(loss, expected, atol=1e-5)
        assert flow.unused.grad is None
        for p, g in zip(flow.parameters(), got, strict=True):
            assert (p.grad is None) == (g is None)
            assert g is None or torch.allclose(p.grad, g, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_weighted_fit_and_one_that_recomputes_compile_too():
    for memory in ("store", "recompute"):
        a = small()
        a.transform.memory = memory
        b = copy.deepcopy(a)
        w = torch.rand(len(rows()))
        diffeo.fit(a, rows(), weights=w, steps=20, compile=False)
        diffeo.fit(b, rows(), weights=w, steps=20, compile=True)
        assert torch.allclose(weights(a), weights(b), atol=1e-4)


@pytest.mark.parametrize(("hidden", "threads"), [([8], 1), ([512, 512], 2)])
def test_small_fits_leave_the_other_cores_alone(hidden, threads):
    seen = []

    class Watched(diffeo.MaximumLikelihood):
        def forward(self, x, context=None):
            seen.append((self.training, torch.get_num_threads()))
            return super().forward(x, context)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        flow = diffeo.realnvp(4, layers=2, hidden=hidden)
        diffeo.fit(Watched(flow), torch.randn(4096, 4), steps=2, batch_size=2048, validation=0, progress=False)
        assert torch.get_num_threads() == 2
        assert {count for training, count in seen if training} == {threads}
        told = []
        diffeo.fit(
            Watched(flow), torch.randn(4096, 4), steps=2, batch_size=2048, validation=torch.randn(64, 4),
            progress=False, on_evaluation=lambda result: told.append(torch.get_num_threads()),
        )  # fmt: skip
        assert set(told) == {2}
        with pytest.raises(RuntimeError, match="on purpose"):
            diffeo.fit(flow, torch.randn(64, 4), steps=2, validation=0, progress=False, on_evaluation=_fail)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def _fail(result):
    raise RuntimeError("on purpose")
