"""Where arithmetic runs: recorded loops, perceptrons, splines, conditioned maps and inverses in C; layouts; compiling.

Nothing here knows transforms or nets. What they want to run fast they describe by plain values: a `Perceptron`, a
scalar map as a function of numbers and parameters. Each kernel says None where it cannot run, and its caller goes on
with PyTorch operations, which is always correct.
"""

from diffeo.kernels.dispatch import compiled_kernels as compiled_kernels
