"""Data files that ASE reads and writes: databases, trajectories, LMDB, VASP's XML."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase
import ase.build
import ase.io
import numpy as np

from fuzz.cases import REFUSE, Expect
from fuzz.formats import RIGHT_METAL, RIGHT_MOLECULES, Change, Numbers, file_target, metal, molecules


def _by_ase(path: Path) -> Numbers:
    """ASE's own opinion; what else it can read of it counts as well."""
    frames = ase.io.read(path, index=":")
    found = []
    for atoms in frames:
        results = {} if atoms.calc is None else atoms.calc.results
        stress = results.get("stress")
        if stress is not None and np.size(stress) == 6:
            xx, yy, zz, yz, xz, xy = np.asarray(stress).reshape(6)
            stress = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
        one = {"numbers": atoms.numbers, "positions": atoms.positions, "cell": np.asarray(atoms.cell), "pbc": atoms.pbc}
        found.append({**one, "energy": results.get("energy"), "forces": results.get("forces"), "stress": stress})
    return found


def _make_by_ase(path: Path) -> None:
    ase.io.write(path, metal())


def _make_iso17(path: Path) -> None:
    from ase.db import connect

    with connect(path) as database:
        for atoms in molecules():
            results = atoms.calc.results
            database.write(
                atoms.copy(),
                key_value_pairs={"total_energy": results["energy"]},
                data={"atomic_forces": results["forces"]},
            )


def _make_lmdb(path: Path) -> None:
    import ase_db_backends  # noqa: F401, registers the format
    from ase.db import connect

    with connect(path, type="aselmdb") as database:
        for atoms in metal():
            database.write(atoms)
    for lock in path.parent.glob("*-lock"):
        lock.unlink()


def _row(change: Callable[[random.Random, dict[str, Any]], None]) -> Change:
    """ISO17's rows with other labels."""

    def changed(rng: random.Random, path: Path) -> Expect:
        from ase.db import connect

        path.unlink()
        with connect(path) as database:
            for atoms in molecules():
                row: dict[str, Any] = {
                    "key_value_pairs": {"total_energy": atoms.calc.results["energy"]},
                    "data": {"atomic_forces": atoms.calc.results["forces"]},
                }
                change(rng, row)
                database.write(atoms.copy(), **row)
        return REFUSE

    return changed


_ISO17: dict[str, Change] = {
    "energy in words": _row(lambda rng, row: row["key_value_pairs"].update(total_energy=rng.choice(["high", "x1"]))),
    "forces in words": _row(
        lambda rng, row: row["data"].update(atomic_forces=rng.choice(["none", {"a": 1}, [1.0], [["x"] * 3] * 9]))
    ),
    "forces of other atoms": _row(lambda rng, row: row["data"].update(atomic_forces=row["data"]["atomic_forces"][:-1])),
    "forces not finite": _row(lambda rng, row: row["data"].update(atomic_forces=row["data"]["atomic_forces"] * np.nan)),
}


def _no_rows(rng: random.Random, path: Path) -> Expect:
    from ase.db import connect

    path.unlink()
    with connect(path) as database:
        database.delete([database.write(ase.Atoms("H"))])
    return REFUSE


_VASP = """<?xml version="1.0" encoding="ISO-8859-1"?>
<modeling><generator><i name="version" type="string">6.4.1</i></generator>
<incar></incar><kpoints><varray name="kpointlist"><v>0 0 0</v></varray></kpoints>
<parameters><separator name="electronic"><i name="NELECT">1</i></separator></parameters>
<atominfo><atoms>2</atoms><types>1</types>
<array name="atoms"><field type="string">element</field><field type="int">atomtype</field>
<set><rc><c>Si</c><c>1</c></rc><rc><c>Si</c><c>1</c></rc></set></array></atominfo>
<structure name="initialpos"><crystal><varray name="basis"><v>4 0 0</v><v>0 4 0</v><v>0 0 4</v></varray></crystal>
<varray name="positions"><v>0 0 0</v><v>0.5 0.5 0.5</v></varray></structure>
<calculation><scstep><energy><i name="e_fr_energy">-10.5</i><i name="e_wo_entrp">-10.4</i>
<i name="e_0_energy">-10.45</i></energy></scstep>
<structure><crystal><varray name="basis"><v>4 0 0</v><v>0 4 0</v><v>0 0 4</v></varray></crystal>
<varray name="positions"><v>0 0 0</v><v>0.5 0.5 0.5</v></varray></structure>
<varray name="forces"><v>0.1 0 0</v><v>-0.1 0 0</v></varray>
<varray name="stress"><v>10 0 0</v><v>0 10 0</v><v>0 0 10</v></varray>
<energy><i name="e_fr_energy">-10.5</i><i name="e_wo_entrp">-10.4</i><i name="e_0_energy">-10.45</i></energy>
</calculation></modeling>
"""


def _vasp_right() -> Numbers:
    forces = np.array([[0.1, 0, 0], [-0.1, 0, 0]])
    one = {"numbers": np.array([14, 14]), "positions": np.array([[0.0] * 3, [2.0] * 3]), "cell": 4.0 * np.eye(3)}
    return [
        {
            **one,
            "pbc": np.ones(3, bool),
            "energy": -10.45,
            "forces": forces,
            "stress": -10 * 6.241509074460763e-4 * np.eye(3),
        }
    ]


TARGETS = [
    file_target("aselmdb", "frames.aselmdb", _make_lmdb, RIGHT_METAL, {}, None, share=2),
    file_target("db", "frames.db", _make_by_ase, RIGHT_METAL, {"no rows": _no_rows}, _by_ase, share=2),
    file_target("iso17", "iso17.db", _make_iso17, RIGHT_MOLECULES, _ISO17, None, share=1),
    file_target("ase json", "rows.json", _make_by_ase, RIGHT_METAL, {}, _by_ase, share=1),
    file_target("traj", "frames.traj", _make_by_ase, RIGHT_METAL, {}, _by_ase, share=2),
    file_target(
        "vasprun", "vasprun.xml", lambda path: path.write_text(_VASP) and None, _vasp_right, {}, _by_ase, share=1
    ),
]
