"""Pictures of fits, with matplotlib (the `examples` extra): each function draws on an Axes and returns it."""

from jaxem.plot.latent import images, latent_space, reconstructions, traversals
from jaxem.plot.mixture import STYLES, components, ellipse, responsibilities, traces
from jaxem.plot.selection import criteria
from jaxem.plot.sequences import states, transitions
from jaxem.plot.style import INK, PALETTE, colours

__all__ = [
    "INK",
    "PALETTE",
    "STYLES",
    "colours",
    "components",
    "criteria",
    "ellipse",
    "images",
    "latent_space",
    "reconstructions",
    "responsibilities",
    "states",
    "traces",
    "transitions",
    "traversals",
]
