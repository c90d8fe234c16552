"""Molecular dynamics: the engine, and the files that it writes and goes on from."""
