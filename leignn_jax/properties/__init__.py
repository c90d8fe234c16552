"""Properties of structures at rest: minima, vibrations and phonons, elastic constants."""
