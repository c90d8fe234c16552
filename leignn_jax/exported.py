"""A potential as one compiled-for-later program that runs with jax alone: StableHLO for CPU, CUDA and TPU in one file.

The file is a zip of ``program``, what ``jax.export`` serialises, and ``about.json``. The program takes positions, atomic
numbers (0 for padding) and cell, finds the neighbours itself and gives energy, forces, stress and whether its lists were
too small. Nothing of this package is needed to run it, only jax and flatbuffers, in which jax writes such programs::

    import json, zipfile
    from jax import export
    with zipfile.ZipFile("si.zip") as file:
        program, about = export.deserialize(bytearray(file.read("program"))), json.loads(file.read("about.json"))
    out = program.call(positions, numbers, cell)  # ["energy"], ["forces"], ["stress"], ["overflow"]

Sizes are fixed: those of a structure that is given when it is written, and some room. The energy is that of the network;
reference energies, by symbol in ``about``, and ``energy_shift`` are to be added by the caller in float64, since in float32
they would round the rest away.
"""

from __future__ import annotations

import importlib.util
import io
import json
import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ase
import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from leignn_jax.arguments import check_atoms, check_choice, check_dtype, check_number, check_path, check_sequence
from leignn_jax.device_neighbors import allocate, renewed
from leignn_jax.errors import ConfigError, ElementError, FileFormatError, StructureError
from leignn_jax.files import in_words, write_atomically
from leignn_jax.list_sizes import plan_sizes
from leignn_jax.neighbors import near_origin
from leignn_jax.potential import Potential, Prediction, check_finite, check_potential

FORMAT = "leignn_jax.exported/1"
# What a reader needs of about.json.
_ABOUT = {"elements", "reference_energies", "energy_shift", "atoms", "pbc", "dtype", "platforms", "jax"}
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
_UNITS = {"length": "Å", "energy": "eV", "forces": "eV/Å", "stress": "eV/Å^3"}


def export_potential(
    potential: Potential,
    path: str | Path,
    atoms: ase.Atoms,
    *,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    room: float = 1.2,
    dtype: str = "float32",
) -> None:
    """Write a program that runs with jax alone; see this module.

    Args:
        potential: a :class:`leignn_jax.Potential`.
        path: of the file, atomically written.
        atoms: a structure like those that it is for: its number of atoms and neighbours, with ``room``, are the most that
            the program takes, and periodic directions are its own.
        platforms: of "cpu", "cuda", "rocm" and "tpu".
        room: how many times as many atoms, neighbours and pairs there may be.
        dtype: "float32" or "float64", of positions and cell.

    Raises:
        ConfigError: flatbuffers is missing, an unknown platform, float64 on a TPU, which has none, or an argument of
            another kind.
        StructureError, ElementError: as :meth:`leignn_jax.Potential.predict`.
    """
    _check_flatbuffers()
    potential, atoms, path = check_potential(potential), check_atoms(atoms), check_path("path", path)
    platforms = [check_choice("platforms", p, PLATFORMS) for p in check_sequence("platforms", platforms)]
    if not platforms:
        raise ConfigError(f"platforms must name at least one of {', '.join(PLATFORMS)}.")
    check_number("room", room, least=1.0, most=100.0)
    if check_dtype(dtype) == "float64" and "tpu" in platforms:
        raise ConfigError("platforms: a TPU has no float64; leave it out or export in float32.")
    potential.check_elements(atoms.numbers)
    network, references = potential.split_references()
    with jax.enable_x64(dtype == "float64"):
        shape, function = _function(network, atoms, room, np.dtype(dtype))
        program = export.export(
            jax.jit(function),
            platforms=platforms,
            # A hint of which axis lies innermost, which every version of XLA reads.
            disabled_checks=[export.DisabledSafetyCheck.custom_call("LayoutConstraint")],
        )(*(jax.ShapeDtypeStruct(*one) for one in shape))
    about = {
        "format": FORMAT,
        "elements": list(potential.config.elements),
        "reference_energies": {e: references[z] for e, z in _symbols(potential)},
        "energy_shift": float(potential.energy_shift),
        "cutoff": potential.cutoff,
        "atoms": shape[0][0][0],
        "pbc": [bool(one) for one in atoms.pbc],
        "dtype": dtype,
        "platforms": platforms,
        "units": _UNITS,
        "jax": jax.__version__,
        "calling_convention": program.calling_convention_version,
    }
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in (("about.json", json.dumps(about, indent=1)), ("program", bytes(program.serialize()))):
            # A fixed date: the same potential is the same bytes.
            file.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    write_atomically(path, content.getvalue())


def _check_flatbuffers() -> None:
    if importlib.util.find_spec("flatbuffers") is None:
        raise ConfigError("Exported programs are written and read by flatbuffers: pip install 'leignn-jax[export]'.")


def _symbols(potential: Potential):
    return zip(potential.config.elements, potential.config.numbers, strict=True)


def _function(network: Potential, atoms: ase.Atoms, room: float, dtype):
    """Shapes and dtypes of the arguments, and the function of them."""
    most = math.ceil(room * len(atoms))
    cell, pbc = np.asarray(atoms.cell), np.asarray(atoms.pbc)
    sizes = plan_sizes(atoms.positions, cell, pbc, network.cutoff)
    sizes = sizes._replace(
        bin_atoms=most if math.prod(sizes.bins) == 1 else math.ceil(room * sizes.bin_atoms),
        neighbors=math.ceil(room * sizes.neighbors),
        pairs=math.ceil(room * room * sizes.pairs),
    )
    padding = most - len(atoms)
    positions = np.pad(atoms.positions, ((0, padding), (0, 0)))
    numbers = np.pad(atoms.numbers, (0, padding))
    made = allocate(positions, cell, pbc, numbers, network.cutoff, 0.0, sizes=sizes, dtype=dtype)

    def answer(positions, numbers, cell):
        neighbors = renewed(made.replace(numbers=numbers), positions, cell)
        out = network.compute(neighbors.graph(positions, cell))
        forces = jnp.where((numbers > 0)[:, None], out.forces, 0.0)
        return {"energy": out.energy[0], "forces": forces, "stress": out.stress[0], "overflow": neighbors.overflow}

    return (((most, 3), dtype), ((most,), np.int32), ((3, 3), dtype)), answer


class Exported(NamedTuple):
    """An exported potential that was read: ``call`` is the program, ``about`` what its file says."""

    call: Any
    about: dict[str, Any]

    def predict(self, atoms: ase.Atoms) -> Prediction:
        """Energy, forces and stress of a structure, as :meth:`leignn_jax.Potential.predict` gives them.

        Raises:
            StructureError: more atoms or neighbours than there is room for, or other periodic directions.
            ElementError: an unknown element.
        """
        about, count = self.about, len(check_atoms(atoms))
        if count > about["atoms"]:
            raise StructureError(
                f"{count} atoms are more than the {about['atoms']} that this program was exported for."
            )
        if list(atoms.pbc) != about["pbc"]:
            raise StructureError(
                f"The program was exported for pbc={about['pbc']}, not {[bool(p) for p in atoms.pbc]}."
            )
        unknown = sorted(set(atoms.symbols) - set(about["elements"]))
        if unknown:
            raise ElementError(f"{unknown[0]} is none of the program's elements: {', '.join(about['elements'])}.")
        near = near_origin(atoms.positions, np.asarray(atoms.cell), np.asarray(atoms.pbc)).positions
        padding, dtype = about["atoms"] - count, np.dtype(about["dtype"])
        with jax.enable_x64(dtype == np.float64):
            out = self.call(
                np.pad(near, ((0, padding), (0, 0))).astype(dtype),
                np.pad(atoms.numbers, (0, padding)).astype(np.int32),
                np.asarray(atoms.cell).astype(dtype),
            )
            out = {name: np.asarray(x, np.float64) for name, x in jax.device_get(out).items()}
        if out["overflow"]:
            raise StructureError(
                "The structure has more neighbours, or another cell, than the program was exported for: export it with more "
                "room, or for a structure like this one."
            )
        references = np.array([about["reference_energies"][s] for s in atoms.symbols])
        found = Prediction(
            energy=float(out["energy"]) + float(references.sum()) + about["energy_shift"],
            forces=out["forces"][:count],
            stress=out["stress"],
            atomic_energies=None,
            direct_forces=None,
        )
        check_finite(found)
        return found


def load_exported(path: str | Path) -> Exported:
    """Read what :meth:`leignn_jax.Potential.export` wrote.

    Raises:
        ConfigError: flatbuffers is missing.
        FileFormatError: no such file, or one of another version, for other platforms than this process has, or damaged.
    """
    _check_flatbuffers()
    path = check_path("path", path)
    try:
        with zipfile.ZipFile(path) as file:
            about, program = json.loads(file.read("about.json")), bytearray(file.read("program"))
    except OSError as error:
        raise FileFormatError(f"{path}: {in_words(error)}.") from error
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError, RuntimeError, zlib.error) as error:
        raise FileFormatError(f"{path} is no exported potential, or it is damaged: {error}.") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        said = about.get("format") if isinstance(about, dict) else about
        raise FileFormatError(f"{path} has the format {said!r:.60}, not {FORMAT!r}: export it anew with this version.")
    missing = sorted(_ABOUT - about.keys())
    if missing:
        raise FileFormatError(f"{path} is damaged: its about.json lacks {', '.join(missing)}.")
    if jax.default_backend() not in _backends(about["platforms"]):
        raise FileFormatError(
            f"{path} was exported for {', '.join(about['platforms'])}, not for {jax.default_backend()}: export it for this "
            "platform too."
        )
    try:
        found = export.deserialize(program)
    except Exception as error:
        raise FileFormatError(
            f"{path} was written by jax {about['jax']}, and jax {jax.__version__} can't read it ({error}): export it anew."
        ) from error
    positions = found.in_avals[0]
    if (positions.shape, str(positions.dtype)) != ((about["atoms"], 3), about["dtype"]):
        raise FileFormatError(
            f"{path} is damaged: its program takes positions {positions.str_short()}, not {about['atoms']} x 3 of "
            f"{about['dtype']} as its about.json says."
        )
    return Exported(found.call, about)


def _backends(platforms: Sequence[str]) -> set[str]:
    return {"gpu" if p in ("cuda", "rocm") else p for p in platforms}
