"""Flows of images, which take and give images of whole numbers."""

from diffeo.recipes.images.flowpp import flowpp as flowpp
from diffeo.recipes.images.multiscale import glow as glow
from diffeo.recipes.images.multiscale import nice_image as nice_image
from diffeo.recipes.images.multiscale import realnvp_image as realnvp_image
from diffeo.recipes.images.srflow import srflow as srflow
from diffeo.recipes.images.tarflow import tarflow as tarflow
