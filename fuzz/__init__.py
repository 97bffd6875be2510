"""Fuzzing led by coverage: `make fuzz` tries what `tests/properties.py` promises on bytes it makes up."""
