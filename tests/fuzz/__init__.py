"""The fuzzer: valid things broken in named ways, each used in a process of its own limits, and what came of it.

==============  ==============================================================================================
cases           what a case is, which there are, and what each must come to
damage          ways to break bytes, text and values
data_files      every format that the readers know, and labels
own_files       potentials, states, checkpoints, trajectories, logs, stores, published checkpoints
settings        trainings, studies, overrides, models, the command line
calls           predict, calculators, graphs, pairs, simulations, rollouts, relaxations
analyses        the functions of ``leignn_jax.analysis``
worker          runs cases in a process with limits and says what came of each
campaign        gives cases to workers, ends those that hang, counts
==============  ==============================================================================================

``python tests/fuzz --cases 5000`` runs many and prints a table, ``python tests/fuzz CASE`` one alone.
"""
