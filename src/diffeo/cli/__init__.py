"""The program `diffeo`: fit, score, sample, report, info and recipes on tables; pictures; speech."""

from diffeo.cli import fit as _fit  # noqa: F401 (each adds its commands)
from diffeo.cli import images as _images  # noqa: F401
from diffeo.cli import report as _report  # noqa: F401
from diffeo.cli import speech as _speech  # noqa: F401
from diffeo.cli import use as _use  # noqa: F401
from diffeo.cli import vocoder as _vocoder  # noqa: F401
from diffeo.cli import voices as _voices  # noqa: F401
from diffeo.cli.app import main as main
