"""Settings that all tests share, made before anything imports JAX."""

import os

# Compiling is most of what the tests do. This skips LLVM's expensive passes: XLA's own (fusion, partitioning, donation) run as
# ever. Set it to 0 to test what a training run executes.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
