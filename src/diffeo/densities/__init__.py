"""Densities: bases for flows, and wrappers; everything public here is also `diffeo.<name>`."""

from diffeo.densities.aligned import Aligned as Aligned
from diffeo.densities.argmax import Argmax as Argmax
from diffeo.densities.bits import bits_per_dim as bits_per_dim
from diffeo.densities.categorical import Categorical as Categorical
from diffeo.densities.conditional import ConditionalNormal as ConditionalNormal
from diffeo.densities.dequantized import Dequantized as Dequantized
from diffeo.densities.logistic import Logistic as Logistic
from diffeo.densities.mixed import Mixed as Mixed
from diffeo.densities.mixture import GaussianMixture as GaussianMixture
from diffeo.densities.noisy import Noisy as Noisy
from diffeo.densities.normal import DiagonalNormal as DiagonalNormal
from diffeo.densities.normal import Normal as Normal
from diffeo.densities.repeated import Repeated as Repeated
from diffeo.densities.resampled import Resampled as Resampled
from diffeo.densities.sphere import UniformSphere as UniformSphere
from diffeo.densities.sphere import VonMisesFisherMixture as VonMisesFisherMixture
from diffeo.densities.student import StudentT as StudentT
from diffeo.densities.uniform import Uniform as Uniform
