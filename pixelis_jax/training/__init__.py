"""Training: the loop, and one file a phase."""
