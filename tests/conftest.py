"""Settings that all tests share, made before anything imports JAX."""

import os
import signal
import threading

# Compiling is most of what the tests do. This skips LLVM's expensive passes: XLA's own (fusion, partitioning, donation) run as
# ever. Set it to 0 to test what a training run executes.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

# A shell that starts the tests in the background leaves SIGINT ignored, and so would every command that they start and interrupt.
if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
