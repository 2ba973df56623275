"""Data: synthetic scenes, traces made by running tools, readers and pipelines."""
