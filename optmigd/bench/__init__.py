"""Figures of the system, measured on the machine at hand: always live against stop-and-copy, or
mediated against native, in one run. `make demo` and `make bench` call it."""
