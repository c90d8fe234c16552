"""The fuzzer: valid things broken in named ways, each used in a process of its own limits, and what came of it.

==========================  ==================================================================================
cases                       what a case is, which there are, and what each must come to
damage, samples, formats    ways to break bytes and values; what is broken; how a data file is
xyz                         a second, strict reader of extended XYZ, by which the package's is judged
data_text, data_arrays,     every format that the readers know
data_libraries, labels
potentials, own_files,      files that the package writes, and published checkpoints
trajectories
settings, studies,          trainings, studies, models, overrides, YAML, words on the command line
command_line
structures, calls,          predictions, graphs, simulations, rollouts, relaxations, analyses
analyses
worker, campaign            runs cases in a process with limits; gives cases to such processes and counts
==========================  ==================================================================================

``python tests/fuzz --cases 5000`` runs many cases and prints a table, ``python tests/fuzz CASE`` one alone.
"""
