"""What a training is prepared from: files, a cache of them, a potential to start from."""

import ase.io
import jax
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from copper_runs import MODEL, SIZE, same, settings
from frames import copper

import leignn_jax as leignn
from leignn_jax.data import read_frames, shortest_distances
from leignn_jax.data.batches import BatchPlan, Shape
from leignn_jax.errors import ConfigError, DataError, ElementError, LeignnError
from leignn_jax.sweeps.committee import committee
from leignn_jax.training.config import make_config
from leignn_jax.training.prepared import prepare, resident_frames, train_batches

pytestmark = pytest.mark.usefixtures("fast_compiles", "shared_programs", "without_pictures")


def test_walls_stand_below_the_train_file(files, tmp_path):
    """The same from memory and from a store; going on with other data opens what either holds."""
    values = settings(files, tmp_path / "run")
    values["model"] = {**MODEL, "repulsion": True}
    first = prepare(make_config(values)).potential
    shortest = shortest_distances(read_frames(files / "train.h5"), 4.0)
    assert first.wall_distances == {("Cu", "Cu"): pytest.approx(0.9 * shortest["Cu", "Cu"])}
    begins = first.wall_distances["Cu", "Cu"]
    cached = make_config(values, [f"data.cache={tmp_path / 'cache'}"])
    assert prepare(cached).potential.wall_distances == first.wall_distances

    narrow = first.with_walls({("Cu", "Cu"): begins - 0.1})
    wide = first.with_walls({("Cu", "Cu"): begins + 0.1})
    del values["model"]
    for start, walls in (
        (narrow, narrow.wall_distances),
        (wide, first.wall_distances),
        (first.replace(walls=None), {}),
    ):
        start.save(tmp_path / "start.safetensors")
        values["run"]["start_from"] = str(tmp_path / "start.safetensors")
        assert prepare(make_config(values)).potential.wall_distances == walls


def test_no_start_from_a_committee(files, tmp_path):
    parts = [leignn.load_potential("si")] * 2
    committee(parts).save(tmp_path / "committee.safetensors")
    values = settings(files, tmp_path / "run", start_from=str(tmp_path / "committee.safetensors"))
    del values["model"]
    with pytest.raises(ConfigError, match="is a committee"):
        leignn.train(values, progress=False)


def test_a_potential_with_direct_forces_goes_on_with_them(files, tmp_path):
    start = tmp_path / "start.safetensors"
    loss = {"force_source": "direct", "stress_weight": 0.0}
    values = settings(files, tmp_path / "run", start_from=str(start))
    del values["model"]
    for direct in (True, False):
        config = leignn.preset("small", **SIZE, variant="leignn", direct_forces=direct, elements=("Cu",))
        leignn.Potential.create(config, jax.random.key(0)).save(start)
        for recipe in ("default", "published"):
            asked = make_config({**values, "loss": loss, "recipe": recipe})
            if direct:
                assert prepare(asked).potential.config == config
            else:
                with pytest.raises(ConfigError, match="has no such head: set it to gradient"):
                    prepare(asked)


def test_frames_of_a_store_stay_there(files, tmp_path):
    config = make_config(settings(files, tmp_path / "run"), [f"data.cache={tmp_path / 'cache'}"])
    assert resident_frames(prepare(config), config, possible=True) is None
    config = make_config(settings(files, tmp_path / "run"), [f"data.cache={tmp_path / 'cache'}", "data.on_device=true"])
    assert resident_frames(prepare(config), config, possible=True) is not None


def test_frames_can_not_stay_on_the_device_for_a_fit(files, tmp_path):
    values = settings(files, tmp_path / "run")
    values["data"] |= {"on_device": True}
    config = make_config(values)
    prepared = prepare(config)
    with pytest.raises(ConfigError, match=r"data.on_device: .* where a fit's targets pull"):
        resident_frames(prepared, config, possible=False)
    values["data"] |= {"on_device": False}
    assert resident_frames(prepared, make_config(values), possible=True) is None


def bad_file(folder, frames):
    path = folder / "bad.extxyz"
    ase.io.write(path, frames)
    return path


def with_forces(atoms, forces):
    copy = atoms.copy()
    copy.calc = SinglePointCalculator(copy, energy=atoms.get_potential_energy(), forces=forces)
    return copy


def test_bad_data_ends_in_words(files, tmp_path):
    frames = copper(6, 9, stress=False)
    values = settings(files, tmp_path / "run")
    values["loss"] = {}

    def attempt(error, message, **data):
        with pytest.raises(error, match=message):
            leignn.train({**values, "data": {**values["data"], **data}}, progress=False)

    nan = frames[2].get_forces().copy()
    nan[1] = np.nan
    attempt(
        DataError,
        r"bad\.extxyz: frame 2: the force on atom 1",
        train=str(bad_file(tmp_path, [*frames[:2], with_forces(frames[2], nan)])),
    )
    large = with_forces(frames[3], 100 * frames[3].get_forces())
    attempt(
        DataError,
        r"bad\.extxyz: frame 3: forces .* force RMS",
        train=str(bad_file(tmp_path, [*frames[:3], large, *frames[4:]])),
    )
    attempt(
        DataError,
        r"bad\.extxyz: forces are too large: their RMS is",
        validation=str(bad_file(tmp_path, [with_forces(a, 100 * a.get_forces()) for a in frames])),
    )
    attempt(DataError, "too few", train=str(bad_file(tmp_path, frames[:1])))
    attempt(DataError, "same structure as", validation=str(files / "train.h5"))
    gold = frames[0].copy()
    gold.numbers[0] = 79
    gold.calc = SinglePointCalculator(gold, **frames[0].calc.results)
    attempt(
        ElementError,
        "holds Au, which no frame of train",
        validation=str(bad_file(tmp_path, [gold])),
    )
    attempt(LeignnError, "name a file", train=None)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_cache_prepares_the_same(files, tmp_path):
    """Sizes and compositions that differ, frames without stress, a part of the file."""
    frames = copper(21, 3, ((1, 1, 1), (2, 1, 1)))
    for atoms in frames[::3]:
        atoms.calc.results.pop("stress")
        atoms.numbers[0] = 79
        atoms.calc.atoms = atoms.copy()
    ase.io.write(tmp_path / "train.extxyz.xz", frames, format="extxyz")
    values = settings(files, tmp_path / "run")
    values["data"] |= {"train": str(tmp_path / "train.extxyz.xz"), "max_frames": 18}
    plain = prepare(make_config(values))
    values["data"] |= {"cache": str(tmp_path / "cache")}
    cached = prepare(make_config(values))
    assert cached.splits.held_out == plain.splits.held_out
    assert cached.steps_per_epoch == plain.steps_per_epoch
    assert cached.potential.config == plain.potential.config
    assert same(cached.potential, plain.potential)
    for mine, expected in ((cached.train, plain.train), (cached.validation, plain.validation)):
        assert mine.plan == expected.plan
        np.testing.assert_array_equal(mine.sizes, expected.sizes)
        assert len(mine.examples) == len(expected.examples) > 2
        assert all(same(a, b) for a, b in zip(mine.examples, expected.examples, strict=True))


def test_a_cache_refuses_what_memory_refuses(files, tmp_path):
    frames = copper(6, 9, stress=False)
    values = settings(files, tmp_path / "run")
    values["loss"] = {}
    gold = frames[0].copy()
    gold.numbers[0] = 79
    gold.calc = SinglePointCalculator(gold, **frames[0].calc.results)
    cases = [
        (DataError, {"train": [*frames[:3], with_forces(frames[3], 100 * frames[3].get_forces()), *frames[4:]]}),
        (DataError, {"train": frames, "validation": [with_forces(a, 100 * a.get_forces()) for a in copper(4, 1)]}),
        (DataError, {"train": frames, "validation": frames[4:]}),
        (ElementError, {"train": frames, "validation": [*copper(2, 1), gold]}),
        (DataError, {"train": [a.copy() for a in frames]}),
        (DataError, {"train": [with_forces(frames[0], np.full((4, 3), np.nan))]}),
        (ElementError, {"train": [*frames, gold], "model": {**MODEL, "elements": ["Cu", "Au"]}, "start": True}),
    ]
    leignn.Potential.create(make_config(values).model_for(["Cu"]), jax.random.key(0)).save(
        tmp_path / "start.safetensors"
    )
    for number, (error, case) in enumerate(cases):
        data = dict(values["data"])
        for name in ("train", "validation"):
            if name in case:
                data[name] = str(tmp_path / f"{name}{number}.extxyz")
                ase.io.write(data[name], case[name])
        words = []
        for cache in (None, str(tmp_path / "cache")):
            run = values["run"] | ({"start_from": str(tmp_path / "start.safetensors")} if "start" in case else {})
            one = {**values, "data": data | {"cache": cache}, "run": run, "model": {} if "start" in case else MODEL}
            with pytest.raises(error) as caught:
                leignn.train(one, progress=False)
            words.append(str(caught.value))
        assert words[0] == words[1]


def test_batches_of_one_update_take_the_largest_of_their_shapes(files, tmp_path):
    """Also where two shapes have as many pairs."""
    clusters = [copper(1, seed)[0][: 1 + seed % 4] for seed in range(16)]
    for atoms in clusters:
        atoms.calc = SinglePointCalculator(atoms, energy=1.0, forces=np.zeros((len(atoms), 3)))
        atoms.pbc = False
    ase.io.write(tmp_path / "clusters.extxyz", clusters)
    values = settings(files, tmp_path / "run")
    values["data"] = {"train": str(tmp_path / "clusters.extxyz"), "batch_size": 1, "accumulate": 2}
    config = make_config(values)
    prepared = prepare(config)
    tied = [Shape(2, 8, 1, 1), Shape(4, 8, 3, 1)]
    prepared = prepared._replace(train=prepared.train._replace(plan=BatchPlan(tuple(tied), (0.5, 0.5), 0.0)))
    for epoch in range(3):
        for _, batch in train_batches(prepared, config, 0, epoch):
            assert batch.graph.numbers.shape[0] == 2


def test_a_batch_is_no_larger_than_the_set(files, tmp_path):
    values = settings(files, tmp_path / "run")
    values["data"]["batch_size"] = 500
    prepared = prepare(make_config(values))
    assert prepared.train.batch_size == len(prepared.train.examples)


def test_epochs_beyond_the_last_have_the_batches_of_those_before(files, tmp_path):
    config = make_config(settings(files, tmp_path / "run"))
    prepared = prepare(config)
    np.testing.assert_array_equal(prepared.order(config, config.run.epochs + 1), prepared.order(config, 1))
