"""Flows of pictures: reading folders of them, scores, samples, interpolation, edits, and pages that show them."""

from diffeo.apps.images.guidance import guided as guided
from diffeo.apps.images.latents import attribute_direction as attribute_direction
from diffeo.apps.images.latents import decode as decode
from diffeo.apps.images.latents import edit as edit
from diffeo.apps.images.latents import encode as encode
from diffeo.apps.images.latents import interpolate as interpolate
from diffeo.apps.images.latents import reconstruct as reconstruct
from diffeo.apps.images.pictures import Pictures as Pictures
from diffeo.apps.images.pictures import grid as grid
from diffeo.apps.images.pictures import read as read
from diffeo.apps.images.pictures import write as write
from diffeo.apps.images.resolution import shrink as shrink
from diffeo.apps.images.resolution import upscale as upscale
from diffeo.apps.images.sampling import sample as sample
from diffeo.apps.images.scores import Scores as Scores
from diffeo.apps.images.scores import gaussian_bits as gaussian_bits
from diffeo.apps.images.scores import histogram_bits as histogram_bits
from diffeo.apps.images.scores import likeliest_class as likeliest_class
from diffeo.apps.images.scores import picture_bits as picture_bits
from diffeo.apps.images.scores import score as score
from diffeo.apps.images.scores import typicality as typicality
from diffeo.apps.images.training import Augmented as Augmented
from diffeo.apps.images.training import fit as fit
