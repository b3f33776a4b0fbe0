"""The protocol: transforms, densities, objectives, and what composes them."""

from diffeo.core.chain import Chain as Chain
from diffeo.core.density import Density as Density
from diffeo.core.flow import Flow as Flow
from diffeo.core.given import Given as Given
from diffeo.core.incremental import Incremental as Incremental
from diffeo.core.joining import Joinable as Joinable
from diffeo.core.memory import Rebuildable as Rebuildable
from diffeo.core.objective import Objective as Objective
from diffeo.core.transform import Inverse as Inverse
from diffeo.core.transform import Transform as Transform
from diffeo.core.transform import Univariate as Univariate
