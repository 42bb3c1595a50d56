"""The model on a CPU.

`reference` is the arithmetic in numpy and the truth; `vision` and `llama` describe the model with its functions. Both
descriptions take the module of functions as their argument `ops`, so faster kernels replace the arithmetic and nothing
else.
"""
