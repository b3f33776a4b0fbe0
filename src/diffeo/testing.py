"""The contract as a program: `check_transform` and `check_density` for one's own classes.

Checks run in `eval()` on a copy whose parameters are perturbed moderately (weights by 0.3/√fan-in, the rest by 0.1):
a flow that starts as the identity proves nothing there. A failure raises `ContractError` and says which promise was
broken, at which input, and by how much.
"""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from diffeo.core import Density, Transform, Univariate
from diffeo.core.given import Preimage
from diffeo.functional import Context, entries, is_real, on_scalars, wrap_angle
from diffeo.noise import OneGeneratorError
from diffeo.transforms import Sphere

M = TypeVar("M", bound=nn.Module)


class ContractError(AssertionError):
    """A promise of the protocol is broken."""


def check_transform(
    transform: Transform,
    x: Tensor,
    context: Context = None,
    *,
    other: Transform | None = None,
    seed: int = 0,
    trace: bool = True,
) -> None:
    """Check everything that the protocol promises of a transform.

    Inverse both ways; log-det against the autograd Jacobian in float64 and its sign in both directions; batch shapes
    (), (5,), (2, 3); context broadcast; gradients finite and reaching every parameter, and gradcheck; float32 round
    trip; extreme inputs inside the domain; determinism; pickle, deepcopy and state dict; masks mapped there and back;
    tracing of both directions with `fullgraph=True`; `vmap` over an ensemble.

    Args:
        transform: what to check; it is not changed.
        x: a batch of inputs inside the domain, shape (n, *event), n ≥ 1.
        context: their context, one row for each x (for a `Univariate`: its parameters).
        other: a second instance of the same structure that differs in everything, permutations included, for the
            `vmap` check. Default: a differently perturbed copy.
        seed: of the perturbation.
        trace: also trace with `torch.compile(backend="eager")` (seconds); skipped where `traceable` is False.

    Raises:
        ContractError: a promise is broken.

    >>> import torch, diffeo
    >>> diffeo.testing.check_transform(diffeo.Exp(), torch.randn(6), trace=False)
    """
    t32, t64 = perturbed(transform, seed), perturbed(transform, seed).double()
    x, x64 = _rows(x, 6, transform.event_ndim), _rows(x, 6, transform.event_ndim).double()
    context = _map(context, lambda t: _rows(t, 6, 0)) if context is not None else None
    c64 = _map(context, lambda t: t.double() if t.is_floating_point() else t)

    _check_shapes(t32, x, context)
    _check_inverse(t64, x64, c64, 1e-6, "float64")
    _check_jacobian(t64, x64[:3], _map(c64, lambda t: t[:3]))
    _check_gradients(t64, x64, c64)
    _check_inverse(t32, x, context, 1e-3, "float32", median=1e-5)
    _check_extremes(t32, x, context)
    _check_determinism(t32, x, context)
    _check_copies(t32, x, context)
    _check_masks(t32, x, context)
    if transform.traceable:
        if trace:
            _check_tracing(t64, x64, c64)  # where the rounding of kernels that a compiler chooses does not show
        second = perturbed(other if other is not None else transform, seed + 1)
        _check_ensemble(t32, second, x, context)


def check_density(
    density: Density,
    context: Context = None,
    *,
    seed: int = 0,
    samples: int = 4000,
) -> None:
    """Check everything that the protocol promises of a density.

    It integrates to one (by quadrature in one and two dimensions; by importance sampling otherwise); samples agree with
    the log-density (importance-weight mean, and a Kolmogorov–Smirnov test against weighted proposals); batch shapes;
    seeds reproduce, those of single rows too; temperature 0 works; `sample_and_log_prob` and `given` agree with
    `log_prob`; pickle, deepcopy and state dict.

    Args:
        density: what to check; it is not changed.
        context: one context row, without batch dims, where the density needs one.
        seed: of the perturbation and the samples.
        samples: how many samples the statistical checks draw.

    Raises:
        ContractError: a promise is broken.

    >>> import diffeo
    >>> diffeo.testing.check_density(diffeo.Normal(2))
    """
    d = perturbed(density, seed)
    event = d.event_shape(context)
    generator = torch.Generator().manual_seed(seed)
    x = d.sample((samples,), context, generator=generator)
    _expect(x.shape == (samples, *event), f"sample((n,)) has shape {tuple(x.shape)}, expected {(samples, *event)}")
    for batch in [(), (5,), (2, 3)]:
        got = d.sample(batch, context).shape
        _expect(got == (*batch, *event), f"sample({batch}) has shape {tuple(got)}")
        got = d(x[: math.prod(batch)].reshape((*batch, *event)), context).shape
        _expect(got == batch, f"log_prob of batch {batch} has shape {tuple(got)}")

    again = d.sample((samples,), context, generator=torch.Generator().manual_seed(seed))
    _expect(torch.equal(x, again), "the same seed does not reproduce the samples")
    other = d.sample((samples,), context, generator=torch.Generator().manual_seed(seed + 1))
    _expect(not torch.equal(x, other), "another seed gives the same samples")
    _check_rows(d, context, seed)
    cold = d.sample((3,), context, temperature=0.0)
    _expect(_finite(cold), "temperature 0 gives values that are not finite")
    _close(cold, cold[:1].expand_as(cold), 1e-4, "temperature 0 does not give one mode: a row")

    with torch.no_grad():
        if d.exact:
            y, log_p = d.sample_and_log_prob((8,), context, generator=torch.Generator().manual_seed(seed))
            _close(log_p, d(y, context), 1e-3, "sample_and_log_prob against log_prob")
            given = d.given(context)
            _close(given.log_prob(y), d(y, context), 1e-5, "given(context).log_prob against log_prob")
        _expect(d.given(context).sample((4,)).shape == (4, *event), "given(context).sample((4,)) has a wrong shape")
        if _on_sphere(d):
            _check_sphere(d, x, context, generator)
        else:
            _check_normalised(d, x, context)
            if d.exact:
                _check_samples(d, x, context, generator)
    for copied in _copies(d):
        y = x[:4]
        if d.exact:
            _close(copied(y, context), d(y, context), 0.0, "a copy's log_prob against the original's")


def perturbed(module: M, seed: int = 0) -> M:
    """A copy in eval mode with moderately perturbed parameters: weights by 0.3/√fan-in, the rest by 0.1."""
    module = copy.deepcopy(module).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            scale = 0.3 / math.sqrt(p.shape[-1]) if p.ndim >= 2 else 0.1
            p.add_(scale * torch.randn(p.shape, generator=generator).to(p))
    return module


def _check_shapes(t: Transform, x: Tensor, context: Context) -> None:
    flat_z, flat_logdet = t(x, context)
    _expect(
        flat_z.shape == (len(x), *t.output_shape(x.shape[1:])),
        f"forward: z has shape {tuple(flat_z.shape)}, output_shape says {tuple(t.output_shape(x.shape[1:]))}",
    )
    for batch in [(), (5,), (2, 3)]:
        n = math.prod(batch)
        for name, run, inputs, values, logdets, ndim in [
            ("forward", t.forward, x, flat_z, flat_logdet, t.event_ndim),
            ("inverse", t.inverse, flat_z, x, -flat_logdet, t.event_ndim_out),
        ]:
            part = inputs[:n].reshape((*batch, *inputs.shape[1:]))
            c = _map(context, lambda v, n=n, batch=batch: v[:n].reshape((*batch, *v.shape[1:])))
            value, logdet = run(part, c)
            dims = part.shape[: part.ndim - ndim]
            _expect(logdet.shape == dims, f"{name}, batch {batch}: logdet has shape {tuple(logdet.shape)}, not {dims}")
            _expect(
                logdet.dtype in (torch.float32, torch.float64),
                f"{name}: logdet must be at least float32, got {logdet.dtype}",
            )
            _close(value.reshape(n, *values.shape[1:]), values[:n], 1e-3, f"{name}, batch {batch}: value")
            _close(logdet.reshape(logdets[:n].shape), logdets[:n], 1e-3, f"{name}, batch {batch}: logdet")
    if isinstance(t, Univariate) or not isinstance(context, Tensor):
        return
    grid = x.reshape(2, 3, *x.shape[1:])
    shared = context[:2].unsqueeze(1)
    z, logdet = t(grid, shared)
    z_full, logdet_full = t(grid, shared.expand(2, 3, *context.shape[1:]))
    _close(z, z_full, 1e-4, "context broadcast: z")
    _close(logdet, logdet_full, 1e-4, "context broadcast: logdet")


def _check_inverse(t: Transform, x: Tensor, context: Context, tol: float, name: str, median: float = 1.0) -> None:
    z, logdet = t(x, context)
    back, logdet_back = t.inverse(z, context)
    _close(back, x, tol, f"{name}: inverse(forward(x)) against x")
    _expect(
        bool(((back - x).abs() / (1 + x.abs())).median() <= median),
        f"{name}: median round-trip error {((back - x).abs() / (1 + x.abs())).median():.1e}, expected ≤ {median:.0e}",
    )
    _close(logdet_back, -logdet, 10 * tol, f"{name}: the inverse's logdet against minus the forward's")
    _close(t(back, context)[0], z, 10 * tol, f"{name}: forward(inverse(z)) against z")


def _check_jacobian(t: Transform, x: Tensor, context: Context) -> None:
    """Of all rows at once, which do not see each other (`_check_shapes` holds it): a backward pass for each output."""
    z = t(x, context)[0].detach()
    for name, run, inputs, ndim in [
        ("forward", t.forward, x, t.event_ndim),
        ("inverse", t.inverse, z, t.event_ndim_out),
    ]:
        n, inputs = len(inputs), inputs.clone().requires_grad_()
        value, logdet = run(inputs, context)
        rows = [
            torch.autograd.grad(part.sum(), inputs, retain_graph=True)[0].reshape(n, -1)
            for part in value.reshape(n, -1).unbind(1)
        ]
        jacobian = torch.stack(rows, 1)
        if ndim == 0:
            # elements of an elementwise map do not see each other
            expected = jacobian.diagonal(dim1=1, dim2=2).abs().log().reshape(inputs.shape)
        else:
            outputs, features = jacobian.shape[1:]
            across = jacobian.mT
            gram = across @ jacobian if outputs > features else jacobian @ across  # on the tangent space
            expected = jacobian.slogdet()[1] if outputs == features else 0.5 * gram.slogdet()[1]
        for i in range(n):
            _close(logdet[i], expected[i], 1e-6, f"{name}: logdet against the autograd Jacobian, row {i}")


def _check_gradients(t: Transform, x: Tensor, context: Context) -> None:
    generator = torch.Generator().manual_seed(0)
    for name, run in [("forward", t.forward), ("inverse", t.inverse)]:
        inputs = (x if name == "forward" else t(x, context)[0].detach()).clone().requires_grad_()
        t.zero_grad()
        value, logdet = run(inputs, context)
        (
            (value * torch.randn(value.shape, generator=generator).to(value)).sum()
            + (logdet * torch.linspace(1, 2, logdet.numel()).reshape(logdet.shape)).sum()
        ).backward()
        _expect(_finite(inputs.grad), f"{name}: the gradient with respect to the input is not finite")
        for path, p in t.named_parameters():
            _expect(p.grad is not None and bool(p.grad.any()), f"{name}: no gradient reaches {path}")
            _expect(_finite(p.grad), f"{name}: the gradient of {path} is not finite")
        few, c = inputs.detach()[:2].clone().requires_grad_(), _map(context, lambda v: v[:2])
        try:
            torch.autograd.gradcheck(lambda v, c=c, run=run: run(v, c), few, atol=1e-4, rtol=1e-3, fast_mode=True)
        except RuntimeError as error:  # gradcheck's own error class
            raise ContractError(f"{name}: gradcheck failed: {error}") from error


def _check_extremes(t: Transform, x: Tensor, context: Context) -> None:
    """Values from 1e-6 to 1e4, and the knots and bounds of splines, give no NaN in either direction."""
    sizes = torch.tensor([1e-6, 1e-3, 1.0, 1e2, 1e4])
    values = torch.cat([-sizes, torch.zeros(1), sizes])
    for part in t.modules():
        bound, bins = getattr(part, "bound", None), getattr(part, "bins", 1)
        if isinstance(bound, float):
            values = torch.cat([values, torch.linspace(-bound, bound, bins + 1)])
    for name, run, domain in [("forward", t.forward, t.domain), ("inverse", t.inverse, t.codomain)]:
        like = x if name == "forward" else t(x, context)[0]
        scalar = on_scalars(domain)
        column = values[:, None]  # against bounds that may differ from coordinate to coordinate
        ok = scalar.check(column) & (scalar.check(column * 1.001) | scalar.check(column * 0.999))
        inside = values[ok.all(-1)]
        if not len(inside):  # as on a sphere
            continue
        c = _map(context, lambda v: v[:1])
        rows = inside.reshape(-1, *(1 for _ in like.shape[1:])).expand(-1, *like.shape[1:]).to(like)
        value, logdet = run(rows, _map(c, lambda v, n=len(rows): v.expand(n, *v.shape[1:])))
        bad = value.isnan().reshape(len(rows), -1).any(1) | logdet.isnan().reshape(len(rows), -1).any(1)
        _expect(not bad.any(), f"{name}: NaN at x = {inside[bad].tolist()}")
        if is_real(t.domain) and is_real(t.codomain):
            _expect(_finite(value) and _finite(logdet), f"{name}: not finite for inputs up to 1e4")


def _check_determinism(t: Transform, x: Tensor, context: Context) -> None:
    (z, logdet), (z2, logdet2) = t(x, context), t(x, context)
    _expect(torch.equal(z, z2) and torch.equal(logdet, logdet2), "two calls in eval() differ")


def _check_copies(t: Transform, x: Tensor, context: Context) -> None:
    z = t(x, context)[0]
    for copied in _copies(t):
        _expect(torch.equal(copied(x, context)[0], z), "a pickled, deep-copied or reloaded transform differs")


def _check_masks(t: Transform, x: Tensor, context: Context) -> None:
    """A mask of z has the shape of z again when it was taken back to x."""
    mask = torch.ones_like(t(x, context)[0], dtype=torch.bool)
    knows_none = type(t).map_context is Transform.map_context and mask.shape != x.shape  # of another dimension
    if t.event_ndim == 0 or knows_none:
        return
    back = entries(t.unmap_context({"mask": mask}))["mask"]
    sides = zip(reversed(back.shape), reversed(x.shape[x.ndim - t.event_ndim :]), strict=False)
    _expect(back.ndim >= t.event_ndim and all(m in (1, n) for m, n in sides), "unmap_context: no mask of x")
    again = entries(t.map_context({"mask": back}))["mask"]
    _expect(torch.equal(again.expand_as(mask), mask), "map_context: not the inverse of unmap_context")


def _copies(module: M) -> list[M]:
    """Copies by pickle, by deepcopy, and by a state dict that went through `torch.save` and a safe `torch.load`."""
    reloaded = perturbed(module, seed=12345)
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    reloaded.load_state_dict(torch.load(buffer, weights_only=True))
    return [pickle.loads(pickle.dumps(module)), copy.deepcopy(module), reloaded]


def _check_tracing(t: Transform, x: Tensor, context: Context) -> None:
    z = t(x, context)[0].detach()
    for name, run, inputs in [("forward", t.forward, x), ("inverse", t.inverse, z)]:
        torch.compiler.reset()
        try:
            traced = torch.compile(run, fullgraph=True, backend="eager")(inputs, context)
        except Exception as error:
            raise ContractError(f"{name}: torch.compile(fullgraph=True) failed: {error}") from error
        finally:
            torch.compiler.reset()
        plain = run(inputs, context)
        _close(traced[0], plain[0], 1e-8, f"{name}: traced value")
        _close(traced[1], plain[1], 1e-8, f"{name}: traced logdet")


def _check_ensemble(a: Transform, b: Transform, x: Tensor, context: Context) -> None:
    """Two members that differ in everything, each on its own inputs, in one vmapped call; without gradient too."""
    skeleton = copy.deepcopy(a)
    tensors = stack_module_state([a, b])
    for name in ["forward", "inverse"]:
        inputs = torch.stack([x, x.flip(0)])
        if name == "inverse":
            inputs = torch.stack(
                [member(rows, context)[0].detach() for member, rows in zip([a, b], inputs, strict=True)]
            )

        def run(params: dict, buffers: dict, rows: Tensor, name: str = name):
            named = {f"module.{k}": v for k, v in {**params, **buffers}.items()}
            return functional_call(_Method(skeleton, name), named, (rows, context))

        for grad in [True, False]:
            with torch.set_grad_enabled(grad):
                value, logdet = vmap(run)(*tensors, inputs)
                for i, member in enumerate([a, b]):
                    expected = getattr(member, name)(inputs[i], context)
                    _close(value[i], expected[0], 1e-3, f"vmap: {name} of ensemble member {i}")
                    _close(logdet[i], expected[1], 1e-3, f"vmap: logdet of {name} of ensemble member {i}")


class _Method(nn.Module):
    """A module whose forward is a method of another, for `functional_call`."""

    def __init__(self, module: nn.Module, name: str):
        super().__init__()
        self.module, self.name = module, name

    def forward(self, *args):
        return getattr(self.module, self.name)(*args)


def _check_normalised(d: Density, x: Tensor, context: Context) -> None:
    """The density sums or integrates to one over a grid, where the event is a scalar, a vector of one, or of two."""
    event = x.shape[1:]
    if event.numel() > 2:
        return
    flat = x.reshape(len(x), -1)
    axes, widths = [], []
    for column in flat.double().unbind(1):
        if bool((column == column.round()).all()):
            margin = 30 if d.exact else 3  # bounds are averaged over noise, which takes many draws for each value
            axis = torch.arange(int(column.min()) - margin, int(column.max()) + margin + 1, dtype=torch.float64)
            width = torch.ones_like(axis)
        else:
            n = 40_001 if event.numel() == 1 else 301
            low, mid, high = column.quantile(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64))
            scale = (high - low) / 3
            u = torch.linspace(-4.5, 4.5, n, dtype=torch.float64)  # dense in the middle, ±45 scales wide
            axis, width = mid + scale * u.sinh(), scale * u.cosh() * (u[1] - u[0])
        axes.append(axis)
        widths.append(width)
    grid = torch.cartesian_prod(*axes).reshape(-1, *event)
    weight = widths[0] if len(widths) == 1 else torch.outer(*widths).flatten()
    total = 0.0
    draws = max(64, 1_000_000 // len(grid))  # of a bound's noise
    for points, w in zip(grid.split(50_000), weight.split(50_000), strict=True):
        points = points.to(x.dtype)
        inside = d.given(context).support.check(points)
        log_p = d(points, context) if d.exact else d.log_prob(points, context, samples=draws)  # type: ignore[call-arg]
        _expect(not log_p.isnan().any() or not is_real(d.support), "the log-density is NaN inside the support")
        if d.exact and not inside.all():  # nothing lies outside, unless it is an angle's other name
            beyond, same = log_p[~inside], d(wrap_angle(points[~inside]), context)
            stray = beyond.isfinite() & ((beyond - same).abs() > 1e-3)
            _expect(not stray.any(), "the density is positive outside its support")
        total += float((log_p.double().exp().nan_to_num(0.0) * w * inside).sum())
    _expect(abs(total - 1) < 0.02, f"the density integrates to {total:.4f}, not 1")


def _check_rows(d: Density, context: Context, seed: int) -> None:
    """Rows by generators of their own do not depend on each other, where the base draws them so."""

    def drawn(seeds: list[int]) -> Tensor:
        return d.sample((len(seeds),), context, generator=[torch.Generator().manual_seed(n) for n in seeds])

    try:
        together = drawn([*range(seed, seed + 8), seed])
    except (OneGeneratorError, TypeError):  # PyTorch's functions take no list
        return
    _close(together[0], together[8], 1e-4, "rows from the same seed")
    _expect(bool((together != together[:1]).any()), "rows from different seeds are the same")
    _close(drawn([seed + 1])[0], together[1], 1e-4, "a row alone against the same row in a batch")


def _check_sphere(d: Density, x: Tensor, context: Context, generator: torch.Generator) -> None:
    """On the unit sphere: the density integrates to one over the surface, and E_p[1/p] is the area of all of it."""
    noise = torch.randn((50_000, 3), generator=generator, dtype=x.dtype)
    area = 4 * math.pi
    p = d(noise / noise.norm(dim=-1, keepdim=True), context).double().exp() * area
    error = float(p.std() / len(p) ** 0.5)
    _expect(abs(float(p.mean()) - 1) < 5 * error + 1e-3, f"the density integrates to {float(p.mean()):.4f}, not 1")
    ratio = (-d(x, context).double()).exp() / area
    error = float(ratio.std() / len(ratio) ** 0.5)
    _expect(
        abs(float(ratio.mean()) - 1) < 5 * error + 0.02,
        f"samples disagree with log_prob: E_p[q/p] is {float(ratio.mean()):.3f} ± {error:.3f}, not 1",
    )


def _check_samples(d: Density, x: Tensor, context: Context, generator: torch.Generator) -> None:
    """Samples against the log-density: E_p[q/p] = 1, and the samples against weighted draws of a wide proposal."""
    from scipy.stats import ks_2samp

    rows = x.reshape(len(x), -1).double()
    features = rows.shape[1]
    low, mid, high = (rows.quantile(q, 0) for q in (0.16, 0.5, 0.84))
    sd = (high - low) / 2
    whole = (rows == rows.round()).all(0)
    least, most = rows.amin(0), rows.amax(0)
    log_q = torch.where(whole, -(most - least + 1).log(), 0.0).sum().expand(len(rows))
    if not whole.all():
        y = rows[:, ~whole]
        if is_real(d.support) or whole.any():
            covariance = 0.64 * y.T.cov().reshape(y.shape[1], -1) + 1e-9 * torch.eye(y.shape[1])
            log_q = log_q + torch.distributions.MultivariateNormal(y.mean(0), covariance).log_prob(y)
        else:  # a proposal that stays inside the support
            a, b = y.quantile(0.05, 0), y.quantile(0.95, 0)
            log_q = log_q + torch.where(((y >= a) & (y <= b)).all(-1), -(b - a).log().sum(), -math.inf)
    ratio = (log_q - d(x, context).double()).exp()
    error = float(ratio.std() / len(ratio) ** 0.5)
    _expect(
        abs(float(ratio.mean()) - 1) < 5 * error + 0.02,
        f"samples disagree with log_prob: E_p[q/p] is {float(ratio.mean()):.3f} ± {error:.3f}, not 1",
    )
    if features > 3:
        return
    n = 20 * len(x)
    sd = torch.where(whole, torch.ones_like(sd), sd)
    wide = mid + 2.0 * sd * torch.randn((n, features), generator=generator, dtype=torch.float64)
    log_q = torch.distributions.Normal(mid, 2.0 * sd).log_prob(wide)
    steps = least + ((most - least + 1) * torch.rand((n, features), generator=generator, dtype=torch.float64)).floor()
    wide, log_q = torch.where(whole, steps, wide), torch.where(whole, -(most - least + 1).log(), log_q).sum(-1)
    log_p = d(wide.to(x.dtype).reshape(n, *x.shape[1:]), context).double().nan_to_num(-math.inf)
    weight = (log_p - log_q).softmax(0)
    effective = float(1 / (weight * weight).sum())
    if effective < 500:
        return  # the proposal does not cover this density; the check above stands alone
    drawn = wide[torch.multinomial(weight, min(len(x), int(effective)), replacement=True, generator=generator)]
    for i in range(features):
        p = ks_2samp(rows[:, i].numpy(), drawn[:, i].numpy()).pvalue  # pyright: ignore[reportAttributeAccessIssue]
        _expect(p > 1e-5, f"samples disagree with log_prob in coordinate {i} (Kolmogorov–Smirnov p = {p:.1e})")


def _on_sphere(d: Density) -> bool:
    support = d.support
    while isinstance(support, Preimage):
        support = support.inner
    return isinstance(support, Sphere)


def _rows(t: Tensor, n: int, event_ndim: int) -> Tensor:
    if t.ndim <= event_ndim:
        raise ValueError(f"check_transform: expected a batch of inputs, got shape {tuple(t.shape)}")
    return t[torch.arange(n) % len(t)].detach().clone()


def _map(context: Context, f: Callable[[Tensor], Tensor]) -> Context:
    if context is None:
        return None
    return f(context) if isinstance(context, Tensor) else {k: f(v) for k, v in context.items()}


def _close(got: Tensor, expected: Tensor, tol: float, what: str) -> None:
    _expect(got.shape == expected.shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(expected.shape)}")
    error = (got.detach().double() - expected.detach().double()).abs() / (1 + expected.detach().double().abs())
    error = torch.where(got == expected, 0.0, error)  # equal infinities
    worst = float(error.max()) if error.numel() else 0.0
    _expect(worst <= tol, f"{what}: off by {worst:.1e} (relative to 1 + |value|), tolerance {tol:.0e}")


def _finite(t: Tensor | None) -> bool:
    return t is not None and bool(t.isfinite().all())


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise ContractError(message)
