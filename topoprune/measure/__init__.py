"""Benchmarks of the fitness and of training, and the torture test. Their output is JSON."""
