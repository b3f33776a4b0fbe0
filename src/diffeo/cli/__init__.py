"""The program `diffeo`: fit, score, sample and info on tables."""

from diffeo.cli.app import main as main
