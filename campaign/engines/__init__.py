"""Engines: what computes. Each writes its input, runs, reads the result and checks it."""
