"""Speed and memory against a bare PyTorch loop and TRL, on one CPU thread: ``python -m benchmarks``."""
