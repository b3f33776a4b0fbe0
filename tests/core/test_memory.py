"""Memory policies: the gradients of "store", in less memory."""

import logging

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

import diffeo
from diffeo.nets import MLP
from diffeo.testing import perturbed


def deep(layers: int, *, context: int = 0, dropout: float = 0.0, features: int = 6) -> diffeo.Flow:
    """Couplings with splines, permutations between them."""
    spline = diffeo.RationalQuadraticSpline(5, 4.0)
    mask = torch.arange(features) % 2 == 0
    order = torch.arange(features).roll(1)
    parts: list[diffeo.Transform] = []
    for _ in range(layers):
        net = MLP(3, 3, n_params=spline.n_params, context=context, hidden=(16, 16), dropout=dropout)
        parts += [diffeo.Coupling(mask, net, spline), diffeo.Permute(order)]
    return perturbed(diffeo.Flow(diffeo.Chain(*parts), diffeo.Normal(features))).train()


def gradients(
    flow: diffeo.Flow, memory: str, x: torch.Tensor, context: torch.Tensor | None = None
) -> list[torch.Tensor]:
    """Gradients of rows, context and weights, the same random numbers each time."""
    flow.transform.memory = memory
    inputs = [t.clone().requires_grad_() for t in (x, context) if t is not None]
    torch.manual_seed(0)
    loss = -flow(*inputs).mean()
    return torch.autograd.grad(loss, [*inputs, *flow.parameters()])


def worst(got: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    return max(float((a - b).norm() / (b.norm() + 1e-12)) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("memory", ["recompute", "invert"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
@pytest.mark.parametrize(("context", "dropout"), [(0, 0.0), (2, 0.3)])
def test_gradients_are_those_of_store(memory, dtype, tolerance, context, dropout):
    flow = deep(10, context=context, dropout=dropout).to(dtype)
    x, c = torch.randn(64, 6, dtype=dtype), torch.randn(64, 2, dtype=dtype) if context else None
    assert worst(gradients(flow, memory, x, c), gradients(flow, "store", x, c)) < tolerance


def test_a_mask_and_steps_are_respected():
    layers = [diffeo.Autoregressive(diffeo.nets.MADE(6, 2, hidden=(16,)), diffeo.Affine()) for _ in range(9)]
    chain = perturbed(diffeo.Chain(diffeo.LeakyReLU(), *layers)).double()
    x, mask = torch.randn(32, 6, dtype=torch.float64), torch.rand(32, 6) > 0.3
    found = []
    for memory in ("store", "recompute", "invert"):
        chain.memory = memory
        z, logdet = chain(x, {"mask": mask})
        found.append(torch.autograd.grad((z * z).sum() + logdet.sum(), list(chain.parameters())))
    assert worst(found[1], found[0]) < 1e-12
    assert worst(found[2], found[0]) < 1e-12


def test_an_ill_conditioned_layer_is_recomputed(caplog):
    squash = diffeo.Elementwise(diffeo.Affine(bound=30.0), 4)
    torch.nn.init.constant_(squash.theta, -25.0)  # scales by e^-20, and adds 25: nothing is left of x in float32
    mask = torch.tensor([True, False, True, False])
    chain = diffeo.Chain(perturbed(diffeo.Coupling(mask, MLP(2, 2, n_params=2, hidden=(8,)), diffeo.Affine())), squash)
    x = torch.randn(16, 4)
    found = []
    for memory in ("store", "invert"):
        chain.memory = memory
        with caplog.at_level(logging.DEBUG, "diffeo"):
            z, logdet = chain(x)
            found.append(torch.autograd.grad(z.sum() + logdet.sum(), list(chain.parameters())))
    assert worst(found[1], found[0]) < 1e-6
    assert "rebuilt input off by" in caplog.text


def test_saved_bytes_do_not_grow_with_depth():
    def saved(layers: int, memory: str) -> int:
        flow = deep(layers)
        flow.transform.memory = memory
        own = {p.untyped_storage().data_ptr() for p in (*flow.parameters(), *flow.buffers())}
        seen: dict[int, int] = {}

        def pack(t: torch.Tensor) -> torch.Tensor:
            if t.untyped_storage().data_ptr() not in own:
                seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with saved_tensors_hooks(pack, lambda t: t):
            flow(torch.randn(256, 6)).mean()
        return sum(seen.values())

    event = 256 * 6 * 4
    # a coupling and a permutation for each of the 32: eight parts between anchors
    assert saved(32, "invert") <= saved(4, "invert") + (2 * 32 - 2 * 4) // 8 * event
    assert saved(32, "invert") < saved(32, "store") / 8


def test_unknown_policies_are_refused():
    with pytest.raises(ValueError, match="store, recompute, invert"):
        diffeo.Chain(diffeo.Exp(), memory="forget")
    chain = diffeo.Chain(diffeo.Exp())
    with pytest.raises(ValueError, match="got 'no'"):
        chain.memory = "no"


@pytest.mark.parametrize("memory", ["recompute", "invert"])
def test_weights_that_changed_between_the_passes_are_refused(memory):
    flow, x = deep(3), torch.randn(8, 6)
    flow.transform.memory = memory
    loss = -flow(x).mean()
    with torch.no_grad():
        next(flow.parameters()).add_(0.1)
    with pytest.raises(RuntimeError, match=rf"memory='{memory}'.*the weights have changed.*memory = 'store'"):
        loss.backward()
    others = {name: (p.detach() + 0.05).requires_grad_() for name, p in flow.named_parameters()}
    loss = -torch.func.functional_call(flow, others, (x,)).mean()
    with pytest.raises(RuntimeError, match="functional_call"):
        loss.backward()
    frozen = flow.requires_grad_(False)
    others = {name: p.detach().clone().requires_grad_() for name, p in frozen.named_parameters()}
    loss = -torch.func.functional_call(frozen, others, (x,)).mean()
    with pytest.raises(RuntimeError, match="functional_call"):
        loss.backward()


class FoundLate(diffeo.Transform):
    """z = x + b, with b the mean of the first rows that come, or of a module that finds its size then."""

    event_ndim = event_ndim_out = 1
    domain = codomain = torch.distributions.constraints.real_vector

    def __init__(self, kind):
        super().__init__()
        self.kind, self.seen = kind, False
        self.event = (6,)
        self.shift = torch.nn.Parameter(torch.zeros(6))
        self.net = torch.nn.LazyLinear(6) if kind == "lazy" else None

    def forward(self, x, context=None):
        if not self.seen:
            with torch.no_grad():
                self.shift.copy_(x.mean(0))
            self.seen = True
        bias = self.shift if self.net is None else self.shift + self.net(torch.ones(3))
        return x + bias, x.new_zeros(x.shape[:-1])

    def inverse(self, z, context=None):
        bias = self.shift if self.net is None else self.shift + self.net(torch.ones(3))
        return z - bias, z.new_zeros(z.shape[:-1])


@pytest.mark.parametrize(("memory", "kind"), [("recompute", "first"), ("invert", "first"), ("recompute", "lazy")])
def test_parts_may_find_their_weights_in_the_first_pass(memory, kind):
    part = FoundLate(kind)
    chain = diffeo.Chain(diffeo.Permute(torch.arange(6).roll(1)), part, memory=memory)
    z, _ = chain(torch.randn(8, 6))
    z.square().sum().backward()
    assert torch.allclose(part.shift.grad, 2 * z.sum(0))


@pytest.mark.parametrize("memory", ["recompute", "invert"])
def test_hooks_of_parts_count(memory):
    flow, x = deep(4), torch.randn(16, 6)
    flow.transform.parts[2].register_forward_hook(lambda module, inputs, out: (out[0], 2 * out[1]))
    assert worst(gradients(flow, memory, x), gradients(flow, "store", x)) < 1e-4


@pytest.mark.parametrize("memory", ["recompute", "invert"])
def test_no_rows_are_no_error(memory):
    assert all(g.numel() == 0 or not g.any() for g in gradients(deep(2), memory, torch.randn(0, 6))[:1])


@pytest.mark.parametrize("layers", [18, 34, 40])  # segments of 9, 17 and 20 parts, whose last piece has 1, 1 and 4
def test_segments_that_are_run_again_in_pieces_have_the_same_gradients(layers, monkeypatch):
    flow, x, context = deep(layers, context=2, dropout=0.3), torch.randn(7, 6), torch.randn(7, 2)
    expected = gradients(flow, "store", x, context)
    replayed = []

    def never(ctx, *_):
        replayed.append(len(ctx.parts))

    monkeypatch.setattr(diffeo.kernels.segments, "_rebuild", never)
    assert worst(gradients(flow, "invert", x, context), expected) < 1e-4
    assert replayed == [-(-2 * layers // 4)] * 4
