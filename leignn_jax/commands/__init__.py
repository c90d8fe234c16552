"""The commands of ``leignn``, one function each; :mod:`leignn_jax.cli` puts them together."""
