"""Synthetic documents with exact answers: fonts, words and pictures from packages, and what is drawn from them."""
