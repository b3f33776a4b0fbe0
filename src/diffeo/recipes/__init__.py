"""Models of the literature, and how to save and load them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType

from diffeo.core import Density
from diffeo.recipes.conditional import regression as regression
from diffeo.recipes.continuous import ffjord as ffjord
from diffeo.recipes.generic import autoregressive_flow as autoregressive_flow
from diffeo.recipes.generic import coupling_flow as coupling_flow
from diffeo.recipes.images import flowpp as flowpp
from diffeo.recipes.images import glow as glow
from diffeo.recipes.images import nice_image as nice_image
from diffeo.recipes.images import realnvp_image as realnvp_image
from diffeo.recipes.images import residual_image as residual_image
from diffeo.recipes.images import srflow as srflow
from diffeo.recipes.images import tarflow as tarflow
from diffeo.recipes.low_rank import planar as planar
from diffeo.recipes.low_rank import radial as radial
from diffeo.recipes.low_rank import sylvester as sylvester
from diffeo.recipes.manifold import sphere as sphere
from diffeo.recipes.manifold import torus as torus
from diffeo.recipes.manifold import unit_box as unit_box
from diffeo.recipes.monotone import bernstein as bernstein
from diffeo.recipes.monotone import bnaf as bnaf
from diffeo.recipes.monotone import gaussianization as gaussianization
from diffeo.recipes.monotone import naf as naf
from diffeo.recipes.monotone import sos as sos
from diffeo.recipes.monotone import unaf as unaf
from diffeo.recipes.registry import check_options as check_options
from diffeo.recipes.registry import find_recipe as find_recipe
from diffeo.recipes.registry import load as load
from diffeo.recipes.registry import read_notes as read_notes
from diffeo.recipes.registry import recipe as recipe
from diffeo.recipes.registry import recipes as recipes
from diffeo.recipes.registry import save as save
from diffeo.recipes.registry import takes as takes
from diffeo.recipes.registry import with_normal_base as with_normal_base
from diffeo.recipes.residual import residual_flow as residual_flow
from diffeo.recipes.rows import mixed as mixed
from diffeo.recipes.speech import flow_tts as flow_tts
from diffeo.recipes.speech import flowtron as flowtron
from diffeo.recipes.speech import glow_tts as glow_tts
from diffeo.recipes.speech import parallel_wavenet as parallel_wavenet
from diffeo.recipes.speech import waveflow as waveflow
from diffeo.recipes.speech import waveglow as waveglow
from diffeo.recipes.speech import wavenet as wavenet
from diffeo.recipes.tabular import gaussian as gaussian
from diffeo.recipes.tabular import iaf as iaf
from diffeo.recipes.tabular import maf as maf
from diffeo.recipes.tabular import nice as nice
from diffeo.recipes.tabular import nsf as nsf
from diffeo.recipes.tabular import nsf_ar as nsf_ar
from diffeo.recipes.tabular import realnvp as realnvp
from diffeo.recipes.tabular import ttf as ttf


class _Callable(ModuleType):
    """`diffeo.recipes()` lists them, whether Python finds the function of that name or this package."""

    def __call__(self, events: str | None = None) -> dict[str, Callable[..., Density]]:
        return recipes(events)


sys.modules[__name__].__class__ = _Callable
