"""The policy against transformers + torch on this machine: same weights, same work, same threads, same run."""
