"""The device side's generation: one loop (`engine.py`), and how the next token is chosen (`sampling.py`, `beam.py`)."""
