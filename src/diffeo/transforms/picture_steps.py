"""Steps of flows on pictures as they are used after training: many layers in one operation."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from diffeo.core import Chain, Transform
from diffeo.functional import Context, context_mask
from diffeo.kernels import picture_steps
from diffeo.kernels.dispatch import can_run
from diffeo.kernels.mix import may_mix
from diffeo.kernels.picture_steps import CouplingStep, LinearStep, Steps
from diffeo.kernels.private import has_hooks
from diffeo.kernels.snapshot import Snapshot
from diffeo.transforms.along import Along
from diffeo.transforms.coupling import Coupling
from diffeo.transforms.linear import FixedLinear

MOST = 16  # plans of one model, for as many sizes of pictures
Key = tuple[torch.Size, torch.dtype, bool]


class PictureSteps(Chain):
    """A chain of linear maps of the channels of pictures and of couplings, which `prepare_inference` makes.

    z and log|det| are those of the chain. Where C may run and no gradient is wanted, all parts are one operation.
    """

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        found = self._at_once(x, context, inverse=False)
        return super().forward(x, context) if found is None else found

    def inverse(self, z: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        found = self._at_once(z, context, inverse=True)
        return super().inverse(z, context) if found is None else found

    def _at_once(self, x: Tensor, context: Context, inverse: bool) -> tuple[Tensor, Tensor] | None:
        if torch.is_grad_enabled() or context_mask(context) is not None or not may_mix(x):
            return None
        plans = _plans.setdefault(self, {})
        key = x.shape[-3:], x.dtype, inverse
        known = plans.get(key)
        if known is None or not known[0].holds():
            plans.pop(key, None)
            known = Snapshot(self), self._plan(x, context, inverse)
            if len(plans) >= MOST:
                plans.clear()
            if known[1] is not None or context is None:  # a context of another batch may do
                plans[key] = known
        steps = known[1]
        if steps is None:
            return None
        shifts: list[Tensor | None] = []
        if steps.shifted:
            for part in self._in_order(inverse):
                net = part.picture_net(x, context) if isinstance(part, Coupling) else None
                if net is None and isinstance(part, Coupling):
                    return None
                shifts.append(None if net is None else net.shift)
        z, logdet = steps(x.reshape(-1, *x.shape[-3:]), shifts)
        return z.view(x.shape), logdet.view(x.shape[:-3])

    def _plan(self, x: Tensor, context: Context, inverse: bool) -> Steps | None:
        """How all parts run in one operation; None where that can't be, which parts then show one by one."""
        steps = [_as_step(part, x, context, inverse) for part in self._in_order(inverse)]
        found = [step for step in steps if step is not None]
        if has_hooks(self) or len(found) < len(steps):
            return None
        scalar_maps = [part.univariate for part in self._transforms() if isinstance(part, Coupling)]
        return picture_steps.plan(scalar_maps, found, x.dtype, inverse)

    def _in_order(self, inverse: bool) -> list[Transform]:
        return list(self._transforms())[:: -1 if inverse else 1]


_plans: WeakKeyDictionary[PictureSteps, dict[Key, tuple[Snapshot, Steps | None]]] = WeakKeyDictionary()


def is_step(part: Transform) -> bool:
    """Whether a part may be one of `PictureSteps`, if its net can run so."""
    if isinstance(part, Along):
        return type(part) is Along and (part.dim, part.event_ndim) == (-3, 3) and type(part.transform) is FixedLinear
    if type(part) is not Coupling or (part.dim, part.event_ndim) != (-3, 3):
        return False
    plain = not part.has_own_steps and getattr(part.net, "three_layers", None) is not None
    return plain and part.net.map is None


def _as_step(part: Transform, x: Tensor, context: Context, inverse: bool) -> LinearStep | CouplingStep | None:
    if not is_step(part) or has_hooks(part):  # it may be another part than it was
        return None
    if isinstance(part, Coupling):
        net = part.picture_net(x, context)
        if net is None or not all(t.is_contiguous() for t in (*net.weights, *net.biases)):
            return None
        return CouplingStep(net.weights, net.biases, net.shift is not None, *part.runs)
    linear: FixedLinear = part.transform  # pyright: ignore[reportAssignmentType, reportAttributeAccessIssue] (an Along)
    if has_hooks(linear):
        return None
    weight = linear.back if inverse else linear.weight
    step = LinearStep(weight, linear.shift, linear.log_scale)
    fits = weight.shape == (x.shape[-3],) * 2 and can_run(x, *step) and all(t.is_contiguous() for t in step)
    return step if fits else None
