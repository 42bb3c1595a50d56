"""Smaller files: numbers to blocks of few bits.

`search` finds the scales, `encode` makes blocks of them, `mixes` says which type each tensor of a file gets, `quantize`
writes whole files, and `importance` finds out which columns matter.
"""
