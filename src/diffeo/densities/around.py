"""Densities around a flow, whose parts they hand out."""

from __future__ import annotations

from diffeo.core import Density, Flow


class AroundFlow(Density):
    """A density made of another one, `density`; where that is a `Flow`, its parts are found here too."""

    density: Density

    @property
    def flow(self) -> Flow:
        """The flow inside."""
        if not isinstance(self.density, Flow):
            name, inner = type(self).__name__, type(self.density).__name__
            raise ValueError(f"{name}: {inner} is no Flow, so it has no transform or base")
        return self.density

    @property
    def transform(self):
        """The transform of the flow inside."""
        return self.flow.transform

    @property
    def base(self) -> Density:
        """The base of the flow inside."""
        return self.flow.base

    @property
    def encoder(self):
        """The encoder of the flow inside."""
        return self.flow.encoder
