"""Measuring a model: suites of questions about images, and the scores of its answers."""
