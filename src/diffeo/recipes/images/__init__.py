"""Flows of images, which take and give images of whole numbers."""

from diffeo.recipes.images.mixtures import flowpp as flowpp
from diffeo.recipes.images.multiscale import glow as glow
from diffeo.recipes.images.multiscale import nice_image as nice_image
from diffeo.recipes.images.multiscale import realnvp_image as realnvp_image
from diffeo.recipes.images.multiscale import residual_image as residual_image
from diffeo.recipes.images.super_resolution import srflow as srflow
from diffeo.recipes.images.transformers import tarflow as tarflow
