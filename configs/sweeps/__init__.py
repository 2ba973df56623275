"""Sweeps of the configs beside them (`pixelis sweep --help`)."""
