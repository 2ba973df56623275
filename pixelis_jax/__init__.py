"""Pixelis in JAX. Importing the package imports nothing else: a spawned tool worker imports it too, and must stay free of JAX."""

__version__ = "0.1.0"
