"""Host-side tools: they look at real pixels in worker processes, and know nothing of JAX."""
