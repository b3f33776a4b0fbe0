"""Exported models, run by ONNX Runtime beside the flow itself."""

import copy
import json
import warnings

import onnxruntime
import pytest
import torch
from torch.nn import functional

import diffeo
from diffeo.onnx import PRECISE

SMALL = {"layers": 1, "hidden": (16, 16)}
CASES = {
    "gaussian": lambda context: diffeo.gaussian(3, context=context),
    "nice": lambda context: diffeo.nice(3, context=context, **SMALL),
    "realnvp": lambda context: diffeo.realnvp(3, context=context, **SMALL),
    "maf": lambda context: diffeo.maf(3, context=context, **{**SMALL, "layers": 2}),
    "maf, residual": lambda context: diffeo.maf(3, context=context, residual=True, **SMALL),
    "maf, linear": lambda context: diffeo.maf(3, context=context, layers=1, hidden=()),
    "iaf": lambda context: diffeo.iaf(3, context=context, **SMALL),
    "nsf": lambda context: diffeo.nsf(3, context=context, components=0, **SMALL),
    "nsf, mixture": lambda context: diffeo.nsf(3, context=context, components=3, **SMALL),
    "nsf_ar": lambda context: diffeo.nsf_ar(3, context=context, components=0, **SMALL),
}


def fitted(name: str, context: int) -> tuple[diffeo.Flow, torch.Tensor, torch.Tensor | None]:
    """A flow whose data-dependent layers are set and whose weights are not at their start, with rows to try."""
    torch.manual_seed(0)
    x = torch.randn(500, 3) * torch.tensor([1.0, 5.0, 0.3]) + torch.tensor([0.0, 20.0, 1.0])
    x[:, 2] = x[:, 2].exp()
    c = torch.randn(500, context) if context else None
    flow = CASES[name](context)
    flow.initialize(x, c)
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    return flow.eval(), x[:100], None if c is None else c[:100]


def run(path, **inputs: torch.Tensor | None) -> torch.Tensor:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    wanted = {i.name for i in session.get_inputs()}
    feed = {name: t.numpy() for name, t in inputs.items() if name in wanted and t is not None}
    assert set(feed) == wanted
    return torch.from_numpy(session.run(None, feed)[0])


def close(got: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(got, expected, rtol=1e-4, atol=1e-4)


# exports take seconds each: one of each kind of conditioner here, with and without context, the others among the slow
FAST = {("maf", 0), ("nsf, mixture", 2)}
DENSITIES = [
    pytest.param(name, context, marks=[] if (name, context) in FAST else pytest.mark.slow)
    for name in CASES
    if "nsf" not in name or name == "nsf, mixture"
    for context in (0, 2)
]
SAMPLERS = [
    pytest.param(name, marks=[] if name == "realnvp" else pytest.mark.slow) for name in CASES if "nsf" not in name
]


@pytest.mark.parametrize(("name", "context"), DENSITIES)
def test_density(name, context, tmp_path):
    flow, x, c = fitted(name, context)
    diffeo.export(flow, tmp_path / "density.onnx")
    with torch.no_grad():
        for n in (1, 7, 100):
            here = None if c is None else c[:n]
            assert close(run(tmp_path / "density.onnx", x=x[:n], context=here), flow(x[:n], here))


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampler(name, tmp_path):
    flow, _, c = fitted(name, 2)
    diffeo.export(flow, tmp_path / "sampler.onnx", "sampler")
    noise = torch.randn(100, 3)
    with torch.no_grad():
        expected = flow.transform.inverse(noise, flow.encode(c))[0]
        assert close(run(tmp_path / "sampler.onnx", noise=noise, context=c), expected)


@pytest.mark.slow
def test_sampler_whose_scalar_inverse_is_a_search(tmp_path):
    torch.manual_seed(0)
    flow = diffeo.testing.perturbed(diffeo.naf(2, layers=1, hidden=(4,))).eval()
    flow.initialize(torch.randn(100, 2))
    diffeo.export(flow, tmp_path / "sampler.onnx", "sampler")
    noise = torch.randn(20, 2)
    with torch.no_grad():
        assert close(run(tmp_path / "sampler.onnx", noise=noise), flow.transform.inverse(noise)[0])


@pytest.mark.slow
def test_sampler_with_a_mixture_as_base(tmp_path):
    flow, x, _ = fitted("nsf, mixture", 0)
    diffeo.export(flow, tmp_path / "sampler.onnx", "sampler")
    samples = run(tmp_path / "sampler.onnx", noise=torch.randn(4000, 3), uniform=torch.rand(4000))
    again = flow.sample(4000)
    for quantile in (0.1, 0.5, 0.9):
        a, b = (t.quantile(quantile, 0) for t in (samples, again))
        assert torch.allclose(a, b, atol=0.15 * float(x.std()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nsf", "nsf_ar"])
def test_splines_both_ways(name, tmp_path):
    flow, x, c = fitted(name, 2)
    diffeo.export(flow, tmp_path / "density.onnx")
    diffeo.export(flow, tmp_path / "sampler.onnx", "sampler")
    with torch.no_grad():
        assert close(run(tmp_path / "density.onnx", x=x, context=c), flow(x, c))
        noise = torch.randn(100, 3)
        got = run(tmp_path / "sampler.onnx", noise=noise, context=c)
        assert close(got, flow.transform.inverse(noise, flow.encode(c))[0])


PICTURES = {
    "glow": {"hidden": 8, "layers": 1},
    "nice_image": {"hidden": 8, "layers": 2},
    "tarflow": {"width": 16, "layers": 1},
    "flowpp": {"couplings": (1, 1, 1)},
}


@pytest.mark.parametrize(
    ("recipe", "classes", "direction"),
    [
        ("nice_image", 3, "density"),
        pytest.param("nice_image", 3, "sampler", marks=pytest.mark.slow),
        pytest.param("glow", 0, "density", marks=pytest.mark.slow),
        pytest.param("glow", 3, "sampler", marks=pytest.mark.slow),
        pytest.param("tarflow", 3, "density", marks=pytest.mark.slow),
        pytest.param("tarflow", 3, "sampler", marks=pytest.mark.slow),
        pytest.param("flowpp", 0, "density", marks=pytest.mark.slow),
        pytest.param("flowpp", 0, "sampler", marks=pytest.mark.slow),
    ],
)
def test_flows_of_pictures(recipe, classes, direction, tmp_path):
    torch.manual_seed(0)
    x = torch.randint(17, (40, 1, 8, 8)) * (torch.rand(40, 1, 8, 8) < 0.5)  # half of it black
    labels = torch.arange(40) % 3 if classes else None
    model = getattr(diffeo, recipe)((1, 8, 8), preset="tiny", levels=17, classes=classes, **PICTURES[recipe])
    model = diffeo.testing.perturbed(model).eval()
    model.initialize(x, labels)
    with pytest.raises(ValueError, match="export its `flow`"):
        diffeo.export(model, tmp_path / "m.onnx")
    diffeo.export(model.flow, tmp_path / "m.onnx", direction)
    with torch.no_grad():
        if direction == "density":
            y = x + torch.rand(x.shape)
            expected, got = model.flow(y, labels), run(tmp_path / "m.onnx", x=y, context=labels)
        else:
            z = torch.randn(40, 64)
            expected = model.flow.transform.inverse(z, model.flow.encode(labels))[0]
            got = run(tmp_path / "m.onnx", noise=z, context=labels)
    assert torch.allclose(got, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["density", "sampler"])
def test_large_pictures_given_small_ones(direction, tmp_path):
    torch.manual_seed(0)
    x = torch.randint(17, (40, 1, 8, 8))
    small = x[..., ::2, ::2].float()
    model = diffeo.testing.perturbed(diffeo.srflow((1, 8, 8), scale=2, preset="tiny", levels=17, layers=1)).eval()
    model.initialize(x, small)
    diffeo.export(model.flow, tmp_path / "m.onnx", direction)
    noise = torch.randn(40, 64)
    with torch.no_grad():
        if direction == "density":
            expected, got = model.flow(x + 0.5, small), run(tmp_path / "m.onnx", x=x + 0.5, context=small)
        else:
            expected = model.flow.transform.inverse(noise, model.flow.encode(small))[0]
            got = run(tmp_path / "m.onnx", noise=noise, context=small)
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    classed = diffeo.srflow((1, 8, 8), scale=2, preset="tiny", levels=17, layers=1, classes=2)
    with pytest.raises(ValueError, match="what LowResolution reads"):
        diffeo.export(classed.flow, tmp_path / "m.onnx", direction)


class FarOut(torch.nn.Module):
    """Operations that ONNX Runtime, or the exporter, computes with an error as large as the result."""

    def forward(self, x):
        far, near = x, x / 8192
        return torch.stack(
            [
                far.sigmoid(),
                functional.logsigmoid(far),
                torch.logaddexp(far, -far - 200),
                torch.logaddexp(far, torch.full_like(far, -torch.inf)),
                near.expm1(),
                far.clamp_max(80).expm1(),
                near.log1p(),
                far.abs().log1p(),
            ]
        )


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 2e-6), (torch.float64, 1e-13)])
def test_precise_far_out_and_near_zero(dtype, rtol, tmp_path):
    x = torch.cat([torch.linspace(-110, 110, 2001), torch.tensor([-1e3, 1e3, 1e-6, -1e-6, -torch.inf, torch.inf])])
    x = x.to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(FarOut(), (x,)).run_decompositions(PRECISE)
        torch.onnx.export(program, (x,), tmp_path / "ops.onnx", dynamo=True, verbose=False, input_names=["x"])
    got, expected = run(tmp_path / "ops.onnx", x=x), FarOut()(x)
    assert torch.equal(got.isinf(), expected.isinf())
    assert torch.allclose(got, expected, rtol=rtol, atol=1e-37, equal_nan=True)


TAILS = {
    "logistic base": lambda: diffeo.Flow(diffeo.Elementwise(diffeo.Affine(), 2), diffeo.Logistic(2)),
    "logistic mixtures": lambda: diffeo.Flow(diffeo.Elementwise(diffeo.MixtureCDF(3), 2), diffeo.Logistic(2)),
    "a bound": lambda: diffeo.Flow(diffeo.Unconstrain([0.0, None], [None, None]), diffeo.Logistic(2)),
}


@pytest.mark.parametrize("name", TAILS)
def test_tails(name, tmp_path):
    flow = diffeo.testing.perturbed(TAILS[name]()).eval()
    diffeo.export(flow, tmp_path / "density.onnx")
    x = torch.tensor([[1.0, 2.0], [60.0, -90.0], [1e3, -1e4], [1e-30, 1e6]])
    with torch.no_grad():
        assert torch.allclose(run(tmp_path / "density.onnx", x=x), flow(x), rtol=1e-5)


@pytest.mark.slow
def test_what_onnx_cannot_express_is_refused_by_name(tmp_path):
    model = diffeo.residual_image((1, 8, 8), preset="tiny", hidden=4, layers=1, levels=17).eval()
    model.initialize(torch.randint(17, (40, 1, 8, 8)))
    with pytest.raises(ValueError, match="ONNX cannot express the density of"):
        diffeo.export(model.flow, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_a_column_with_two_ends_can_be_scored(tmp_path):
    flow = diffeo.Flow(diffeo.Unconstrain([0.0, None, 0.0], [1.0, None, None]), diffeo.Normal(3)).eval()
    x = torch.rand(20, 3)
    diffeo.export(flow, tmp_path / "density.onnx")
    assert close(run(tmp_path / "density.onnx", x=x), flow(x))


def test_the_flow_stays_as_it_was_and_the_file_tells_what_it_is(tmp_path):
    flow, _, _ = fitted("gaussian", 0)
    before = copy.deepcopy(flow.state_dict())
    path = tmp_path / "density.onnx"
    diffeo.export(flow, path)
    after = flow.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    metadata = onnxruntime.InferenceSession(str(path)).get_modelmeta().custom_metadata_map
    assert metadata["diffeo.direction"] == "density"
    assert json.loads(metadata["diffeo.recipe"])["name"] == "gaussian"
    assert b"site-packages" not in path.read_bytes()


def test_what_cannot_be_exported_is_refused(tmp_path):
    with pytest.raises(ValueError, match="of a fixed shape, got Normal"):
        diffeo.export(diffeo.Normal(2), tmp_path / "a.onnx")
    with pytest.raises(ValueError, match="'density' or 'sampler'"):
        diffeo.export(diffeo.maf(2), tmp_path / "a.onnx", "sideways")
    assert not list(tmp_path.iterdir())
