"""Proof that a model computes here what it is meant to compute: stage by stage, on this machine, with these files."""
