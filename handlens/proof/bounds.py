"""How far a stage may be from what it should be, and why."""

#: Fast arithmetic against numpy on the same input, as a share of what the stage makes. Kernels round activations to 8
#: bits: half a percent a linear layer (docs/performance.md), and a block has four such layers, one behind the other.
ARITHMETIC = 0.05

#: Outputs of a chain of stages in numpy against those in the seal. Only the order of float32 additions differs.
CHAIN = 2e-3

#: The same where a model is so large that the chain is computed by the kernels: roundings of all blocks add up.
FAST_CHAIN = 0.35

#: The largest weight of a matrix, in multiples of their root mean square. Outliers of trained models stay below.
OUTLIER = 2000.0
