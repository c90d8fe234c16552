"""Sweeps: many models that differ in numbers train as one compiled program."""
