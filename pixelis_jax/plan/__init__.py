"""Ahead-of-time compilation for TPU topologies: what a step needs of each chip, on a machine without any."""
