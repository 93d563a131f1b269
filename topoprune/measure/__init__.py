"""Benchmarks of the fitness and of training, and the torture test. They write JSON, which the book shows."""
