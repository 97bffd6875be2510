"""Measurements beside nginx; `make bench-smoke` runs the quick one."""
