"""The structures on which every model is timed, built without reading any file."""

import ase
import ase.build
import numpy as np

# Positions in Angstrom: aspirin relaxed with the MMFF94 force field (RDKit).
ASPIRIN = """
C  3.404  0.554 -0.041
C  2.044  0.139  0.435
O  1.689  0.144  1.607
O  1.288 -0.266 -0.659
C -0.028 -0.585 -0.315
C -0.328 -1.942 -0.163
C -1.629 -2.330  0.152
C -2.626 -1.367  0.303
C -2.327 -0.011  0.132
C -1.022  0.397 -0.187
C -0.703  1.833 -0.399
O  0.361  2.305 -0.755
O -1.756  2.637 -0.155
H  3.924 -0.305 -0.470
H  3.984  0.930  0.807
H  3.311  1.356 -0.777
H  0.449 -2.692 -0.281
H -1.866 -3.384  0.282
H -3.641 -1.670  0.551
H -3.124  0.719  0.247
H -1.404  3.538 -0.315
"""


def water(box: float = 12.4, per_side: int = 4, seed: int = 0) -> ase.Atoms:
    """Periodic liquid-like water: rigid molecules on a jittered lattice, random turns."""
    rng = np.random.default_rng(seed)
    half_angle = np.radians(104.5) / 2
    hydrogens = 0.96 * np.array(
        [
            [np.sin(half_angle), 0.0, np.cos(half_angle)],
            [-np.sin(half_angle), 0.0, np.cos(half_angle)],
        ]
    )
    molecule = np.vstack([np.zeros(3), hydrogens])
    positions = []
    for site in np.ndindex(per_side, per_side, per_side):
        turn, upper = np.linalg.qr(rng.normal(size=(3, 3)))
        turn *= np.sign(np.diag(upper))
        oxygen = (np.array(site) + 0.5) * box / per_side
        oxygen = oxygen + rng.normal(scale=0.1, size=3)
        positions.append(oxygen + molecule @ turn.T)
    return ase.Atoms("OHH" * per_side**3, np.concatenate(positions), cell=[box] * 3, pbc=True)


def silicon(seed: int = 0) -> ase.Atoms:
    """A 3x3x3 supercell of cubic silicon, displaced by 0.05 Angstrom."""
    atoms = ase.build.bulk("Si", cubic=True) * 3
    atoms.rattle(stdev=0.05, seed=seed)
    return atoms


def aspirin() -> ase.Atoms:
    """One aspirin molecule in vacuum."""
    lines = [line.split() for line in ASPIRIN.split("\n") if line]
    symbols = [line[0] for line in lines]
    return ase.Atoms(symbols, np.array([line[1:] for line in lines], dtype=float))


STRUCTURES = {"water": water, "silicon": silicon, "aspirin": aspirin}
