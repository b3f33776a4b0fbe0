"""Bijections; everything public here is also `diffeo.<name>`."""

from diffeo.transforms.along import Along as Along
from diffeo.transforms.along import Conv1x1 as Conv1x1
from diffeo.transforms.along import Partial as Partial
from diffeo.transforms.autoregressive import Autoregressive as Autoregressive
from diffeo.transforms.block_autoregressive import BlockAutoregressive as BlockAutoregressive
from diffeo.transforms.conditioned import Conditioned as Conditioned
from diffeo.transforms.continuous import Continuous as Continuous
from diffeo.transforms.coupling import Coupling as Coupling
from diffeo.transforms.elementwise import Elementwise as Elementwise
from diffeo.transforms.gaussianize import Gaussianize as Gaussianize
from diffeo.transforms.linear import ExpLinear as ExpLinear
from diffeo.transforms.linear import Householder as Householder
from diffeo.transforms.linear import LULinear as LULinear
from diffeo.transforms.linear import TriangularLinear as TriangularLinear
from diffeo.transforms.linear import qr_linear as qr_linear
from diffeo.transforms.linear import svd_linear as svd_linear
from diffeo.transforms.multiscale import Multiscale as Multiscale
from diffeo.transforms.norm import ActNorm as ActNorm
from diffeo.transforms.norm import Standardize as Standardize
from diffeo.transforms.norm import Whiten as Whiten
from diffeo.transforms.permute import Permute as Permute
from diffeo.transforms.planar import Planar as Planar
from diffeo.transforms.planar import Radial as Radial
from diffeo.transforms.planar import Sylvester as Sylvester
from diffeo.transforms.regress import Regress as Regress
from diffeo.transforms.reshape import Checkerboard as Checkerboard
from diffeo.transforms.reshape import Haar as Haar
from diffeo.transforms.reshape import Patches as Patches
from diffeo.transforms.reshape import Reshape as Reshape
from diffeo.transforms.reshape import Squeeze as Squeeze
from diffeo.transforms.residual import Residual as Residual
from diffeo.transforms.sequence import Fold as Fold
from diffeo.transforms.sphere import Sphere as Sphere
from diffeo.transforms.sphere import SphereToCylinder as SphereToCylinder
from diffeo.transforms.unconstrain import Unconstrain as Unconstrain
from diffeo.transforms.univariate import *  # noqa: F403 (a scalar map is exported in one place)
