"""Benchmarks: run a policy over examples, judge its answers, and say how sure the numbers are."""
