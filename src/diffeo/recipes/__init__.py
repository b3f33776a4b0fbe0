"""Models of the literature, and how to save and load them."""

from diffeo.recipes.mixed import mixed as mixed
from diffeo.recipes.registry import find_recipe as find_recipe
from diffeo.recipes.registry import load as load
from diffeo.recipes.registry import read_notes as read_notes
from diffeo.recipes.registry import recipe as recipe
from diffeo.recipes.registry import recipes as recipes
from diffeo.recipes.registry import save as save
from diffeo.recipes.regression import regression as regression
from diffeo.recipes.tabular import gaussian as gaussian
from diffeo.recipes.tabular import iaf as iaf
from diffeo.recipes.tabular import maf as maf
from diffeo.recipes.tabular import nice as nice
from diffeo.recipes.tabular import nsf as nsf
from diffeo.recipes.tabular import nsf_ar as nsf_ar
from diffeo.recipes.tabular import realnvp as realnvp
