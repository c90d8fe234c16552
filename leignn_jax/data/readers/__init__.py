"""Readers: from any supported file or folder to ``ase.Atoms`` with energy, forces and stress, one by one or all.

==========================  ===================================================================================
.extxyz, .xyz               extended XYZ; also .xz, .gz, .bz2, unpacked as it is read
.npz                        raw MD17, rMD17, sGDML; other units than kcal/mol by ``e_unit``, ``r_unit`` or ``units``
folder with type.raw        DeePMD-kit, ``set.*/*.npy``, also all such folders under one
folder of ``.extxyz.xz``    OC20 S2EF, each file with its .txt or .txt.xz of reference energies
.aselmdb                    ASE's LMDB of fairchem (needs ``pip install ase-db-backends``)
.db                         ASE database; SchNetPack's units and ISO17's names of energy and forces are known
.h5, .hdf5                  HDF5 as :func:`write_hdf5` writes it, one group per composition
.json                       a list of structures as mlearn has it; ASE's JSON database otherwise
all else                    whatever ``ase.io.read`` reads: traj, vasprun.xml, OUTCAR, cp2k, ...
==========================  ===================================================================================

What is read frame by frame or in blocks never stands in memory whole: all but .npz, .json and some formats of ASE.

Pickled data (.pkl, .pt, the LMDBs of OC20 and the authors) is refused, since opening it would run whatever it says.
"""

from __future__ import annotations

from leignn_jax.data.readers.dispatch import PICKLED, iter_frames, read_frames
from leignn_jax.data.readers.frames import frame
from leignn_jax.data.readers.hdf5 import write_hdf5
from leignn_jax.data.readers.units import BOHR, HARTREE, KCAL_PER_MOL, UNITS

__all__ = [
    "BOHR",
    "HARTREE",
    "KCAL_PER_MOL",
    "PICKLED",
    "UNITS",
    "frame",
    "iter_frames",
    "read_frames",
    "write_hdf5",
]
