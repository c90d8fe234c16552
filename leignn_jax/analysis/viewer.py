"""Structures and trajectories to look at in a notebook, by whichever viewer is installed."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from typing import Any

from ase import Atoms

from leignn_jax.errors import ConfigError

_VIEWERS = ("py3Dmol", "nglview", "x3d")


def view(frames: Atoms | Sequence[Atoms], viewer: str | None = None, *, size: tuple[int, int] = (500, 400)) -> Any:
    """A picture to turn with the mouse, shown where it is the last line of a notebook's cell; a list is an animation.

    Args:
        frames: one structure or a list.
        viewer: "py3Dmol" (``pip install py3Dmol``), "nglview" (``pip install nglview``) or "x3d" (ASE's own, needs
            IPython only, shows one structure); None takes the first that is installed.
        size: of the picture in pixels, width and height; nglview sizes itself.

    Raises:
        ConfigError: an unknown viewer, an empty list, or a list for x3d.
        ModuleNotFoundError: the viewer is not installed, or none is.
    """
    frames = [frames] if isinstance(frames, Atoms) else list(frames)
    if not frames:
        raise ConfigError("There is nothing to view: the list of frames is empty.")
    if viewer is None:
        # x3d can't animate, so it is the last choice.
        there = [name for name in _VIEWERS if _installed(name)]
        if not there or (there == ["x3d"] and len(frames) > 1):
            raise ModuleNotFoundError(
                "No viewer for notebooks is installed that can show this. Install one: pip install py3Dmol."
            )
        viewer = there[0]
    if viewer not in _VIEWERS:
        raise ConfigError(f"viewer: {viewer!r} is not known. One of {list(_VIEWERS)}.")
    if not _installed(viewer):
        raise ModuleNotFoundError(f"The viewer {viewer} is not installed: pip install {_package(viewer)}.")
    if viewer == "py3Dmol":
        return _by_py3dmol(frames, size)
    if viewer == "nglview":
        import nglview  # pyright: ignore[reportMissingImports]

        return nglview.show_asetraj(frames) if len(frames) > 1 else nglview.show_ase(frames[0])
    if len(frames) > 1:
        raise ConfigError(f"x3d shows one structure, not {len(frames)}: pick a frame, or pip install py3Dmol.")
    from ase.visualize.x3d import view_x3d

    return view_x3d(frames[0])


def _package(viewer: str) -> str:
    return "ipython" if viewer == "x3d" else viewer


def _installed(viewer: str) -> bool:
    return importlib.util.find_spec("IPython" if viewer == "x3d" else viewer) is not None


def _by_py3dmol(frames: Sequence[Atoms], size: tuple[int, int]) -> Any:
    import py3Dmol  # pyright: ignore[reportMissingImports]
    from ase.io import write

    text = io.StringIO()
    write(text, list(frames), format="xyz")
    picture = py3Dmol.view(width=size[0], height=size[1])
    if len(frames) > 1:
        picture.addModelsAsFrames(text.getvalue(), "xyz")
    else:
        picture.addModel(text.getvalue(), "xyz")
    picture.setStyle({"sphere": {"scale": 0.25}, "stick": {"radius": 0.12}})
    corners = _cell_edges(frames[0])
    for start, end in corners:
        picture.addLine({"start": start, "end": end, "color": "gray"})
    picture.zoomTo()
    if len(frames) > 1:
        picture.animate({"loop": "forward", "interval": 50})
    return picture


def _cell_edges(atoms: Atoms) -> list[tuple[dict[str, float], dict[str, float]]]:
    """The twelve edges of a periodic cell as pairs of points; none without a cell."""
    if not atoms.pbc.any() or atoms.cell.rank < 3:
        return []
    edges = []
    for axis in range(3):
        b, c = (atoms.cell.array[k] for k in range(3) if k != axis)
        for corner in (0 * b, b, c, b + c):
            ends = (corner, corner + atoms.cell.array[axis])
            edges.append(tuple(dict(zip("xyz", map(float, p), strict=True)) for p in ends))
    return edges
