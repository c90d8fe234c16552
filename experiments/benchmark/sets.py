"""The sets of ../shared/data, what is judged on each, and what others published there (the READMEs beside the data say from
where, and how sure each figure is)."""

from typing import NamedTuple


class Set(NamedTuple):
    """A folder; its test files by name; published force errors, meV/Å by model; which error they are of, MAE or RMSE; what
    has to be allowed of its data (``data.allow``)."""

    folder: str
    tests: tuple[str, ...] = ("test",)
    published: dict[str, float] | None = None
    error: str = "mae"
    allow: tuple[str, ...] = ()


SETS = {
    "aspirin": Set("rmd17_aspirin", published={"MACE": 6.6, "Allegro": 7.3, "NequIP": 8.2, "ACE": 17.9, "GAP": 44.9}),
    "ethanol": Set("rmd17_ethanol", published={"MACE": 2.1, "Allegro": 2.1, "NequIP": 2.8, "ACE": 7.3, "GAP": 18.1}),
    "malonaldehyde": Set(
        "rmd17_malonaldehyde", published={"MACE": 4.1, "Allegro": 3.6, "NequIP": 5.1, "ACE": 11.1, "GAP": 26.4}
    ),
    "naphthalene": Set(
        "rmd17_naphthalene", published={"MACE": 1.6, "Allegro": 0.9, "NequIP": 1.3, "ACE": 5.1, "GAP": 16.5}
    ),
    "salicylic acid": Set(
        "rmd17_salicylic", published={"MACE": 3.1, "Allegro": 2.9, "NequIP": 4.0, "ACE": 9.3, "GAP": 24.7}
    ),
    "3BPA": Set(
        "3bpa",
        ("test", "test_600K"),
        {"MACE": 8.8, "NequIP": 10.8, "Allegro": 13.0, "ACE": 27.1, "GAP": 87.3},
        "rmse",
    ),
    "acetylacetone": Set(
        "acac",
        ("test", "test_600K", "test_dihedral", "test_H_transfer"),
        {"MACE": 5.1, "NequIP": 5.9, "BOTNet": 6.3},
        "rmse",
    ),
    "dipeptides": Set("spice_dipeptides"),
    "combustion": Set("combustion_cho", allow=("duplicates",)),  # of a random split: 4 are in train and validation
    "methane": Set("methane_gas"),
    "water": Set("water"),
    "LiPS": Set("lips"),
    "LiPS at 20 compositions": Set("lips20"),
    "GeTe": Set("gete"),
    "Li": Set("mlearn_Li"),
    "Mo": Set("mlearn_Mo"),
    "Si": Set("mlearn_Si"),
    "NbMoTaW": Set("nbmotaw", ("test", "test_multinary"), {"SNAP": 140.0}),
    "InP": Set("inp", allow=("duplicates",)),  # of a random split: 13 validation frames are frames of train, too
    "Ta": Set("ta", published={"SNAP, its training error": 76.0}),
    "oxides": Set("oxides"),
    "adsorption": Set("adsorption"),
}
