"""Loss, schedules and the train step as pure functions."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from frames import copper
from optax.contrib import MuonDimensionNumbers, muon

from leignn_jax.data.batches import Shape, collate, example, sizes_of
from leignn_jax.data.labels import read_labels
from leignn_jax.errors import ConfigError
from leignn_jax.models.config import LEIGNNConfig
from leignn_jax.potential import Potential
from leignn_jax.training.config import make_config
from leignn_jax.training.loss import LossKinds, LossWeights, combine, loss, measure, metrics
from leignn_jax.training.optimizer import Plateau, learning_rate, loss_weights, plateau_step, transformation
from leignn_jax.training.step import evaluate_step, start_state, train_step

pytestmark = pytest.mark.usefixtures("fast_compiles")

KINDS = LossKinds(with_stress=True)
MODEL = {"elements": ("Cu",), "features": 8, "layers": 1, "num_radial": 4, "cutoff": 4.0}


def make(kinds=KINDS, freeze=(), **settings):
    model = LEIGNNConfig(**{**MODEL, "direct_forces": kinds.source == "direct"})
    potential = Potential.create(model, jax.random.key(0), reference_energies={"Cu": -1.0}, scale=0.5)
    config = make_config(
        {
            "optimizer": {"algorithm": "adam", "warmup_epochs": 0, "weight_decay": 0, **settings},
            "loss": {"stress_weight": 0.5},
        }
    )
    return start_state(potential, config.hyperparameters(10), config.optimizer.algorithm, freeze)


def batch_of(frames, extra=0):
    examples = [example(a, read_labels(a), 4.0, {"Cu": -1.0}) for a in frames]
    sizes = sizes_of(examples)
    pairs = int(sizes[:, 1].sum()) + 7 * extra
    shape = Shape(int(sizes[:, 0].sum()) + extra, pairs, int(sizes[:, 2].max()) + extra, len(frames) + extra)
    return collate(examples, shape)


@pytest.fixture(scope="module")
def frames():
    return copper(4, sizes=((1, 1, 1), (2, 1, 1)))


@pytest.fixture(scope="module")
def step():
    return jax.jit(partial(train_step, kinds=KINDS, algorithm="adam"))


def equal(a, b, **tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if tolerance:
            np.testing.assert_allclose(x, y, **tolerance)
        else:
            np.testing.assert_array_equal(x, y)


def test_measures():
    error = jnp.array([[3.0, 0.0, -4.0], [0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(measure("norm", error, 0.1), [5, 0])
    np.testing.assert_array_equal(measure("l1", error, 0.1), jnp.abs(error))
    np.testing.assert_array_equal(measure("l2", error, 0.1), error**2)
    np.testing.assert_allclose(measure("huber", error, 4.0)[0], [1.125, 0, 2.0])
    gradient = jax.grad(lambda e: measure("norm", e, 0.1).sum())(error)
    np.testing.assert_allclose(gradient, [[0.6, 0, -0.8], [0, 0, 0]], atol=1e-7)


@pytest.mark.parametrize("kinds", [KINDS, LossKinds("l1", "huber", "l2"), LossKinds(source="direct")])
def test_loss_is_the_same_with_padding_and_in_any_order(frames, kinds):
    state = make(kinds)
    weights = LossWeights(1.0, 2.0, 3.0, 0.1)
    value = jax.jit(partial(loss, kinds=kinds))
    plain, sums = value(state.potential, batch_of(frames), weights)
    padded, padded_sums = value(state.potential, batch_of(frames, extra=3), weights)
    turned, _ = value(state.potential, batch_of(frames[::-1]), weights)
    np.testing.assert_allclose([padded, turned], plain, rtol=2e-6)
    equal(sums, padded_sums, rtol=2e-5)


def test_metrics_are_the_errors_of_predict(frames):
    state = make()
    sums = evaluate_step(state.potential, batch_of(frames), LossWeights(1.0, 1.0, 1.0, 0.1), kinds=KINDS)["sums"]
    found = metrics(jax.device_get(sums))
    potential = state.potential.replace(reference_energies=np.array([-1.0]))
    predictions = potential.predict(frames)
    labels = [read_labels(a) for a in frames]
    pairs = list(zip(frames, labels, predictions, strict=True))
    energy = np.array([(p.energy - x.energy) / len(a) for a, x, p in pairs])
    forces = np.concatenate([(p.forces - x.forces).ravel() for _, x, p in pairs])
    stress = np.concatenate([(p.stress - x.stress).ravel() for _, x, p in pairs])
    assert found["energy_mae_mev_per_atom"] == pytest.approx(1e3 * np.abs(energy).mean(), rel=1e-4)
    assert found["forces_rmse_mev_per_angstrom"] == pytest.approx(1e3 * np.sqrt((forces**2).mean()), rel=1e-4)
    assert found["stress_mae_mev_per_angstrom3"] == pytest.approx(1e3 * np.abs(stress).mean(), rel=1e-3)


def test_missing_labels_do_not_count(frames):
    some = copper(2)
    del some[1].calc.results["stress"]
    del some[1].calc.results["energy"]
    sums = evaluate_step(make().potential, batch_of(some), LossWeights(1.0, 1.0, 1.0, 0.1), kinds=KINDS)["sums"]
    assert (sums["energy"]["count"], sums["stress"]["count"], sums["forces"]["count"]) == (1, 9, 24)
    assert metrics({"energy": {"abs": 0.0, "sq": 0.0, "count": 0.0}})["energy_mae_mev_per_atom"] is None


def test_the_loss_of_several_batches_is_that_of_one(frames):
    """Where every second frame has an energy, and one a stress: a batch without labels counts for nothing."""
    frames = [atoms.copy() for atoms in frames]
    for i, atoms in enumerate(copper(4, sizes=((1, 1, 1), (2, 1, 1)))):
        kept = {"forces": atoms.get_forces()} | ({"energy": atoms.get_potential_energy()} if i % 2 else {})
        kept |= {"stress": atoms.get_stress()} if i == 2 else {}
        frames[i].calc = SinglePointCalculator(frames[i], **kept)
    potential, weights = make().potential, LossWeights(1.0, 2.0, 3.0, 0.1)

    def terms(batches):
        each = [evaluate_step(potential, batch, weights, kinds=KINDS)["terms"] for batch in batches]
        return jax.tree.map(lambda *x: sum(x), *each)

    whole = combine(terms([batch_of(frames)]))
    for parts in ([frames[:1], frames[1:]], [[atoms] for atoms in frames]):
        np.testing.assert_allclose(combine(terms(map(batch_of, parts))), whole, rtol=1e-5)
    np.testing.assert_allclose(loss(potential, batch_of(frames), weights, KINDS)[0], whole, rtol=1e-6)


def test_steps_reduce_the_loss(frames, step):
    state, batch = make(learning_rate=5e-3), batch_of(frames)
    values = []
    for _ in range(30):
        state, out = step(state, batch)
        values.append(float(out["loss"]))
    assert values[-1] < 0.6 * values[0]
    assert int(state.step) == 30
    assert int(state.failed_at) == -1


def test_the_first_step_is_adams(frames, step):
    """Against optax.adamw on the same gradient."""
    state, batch = make(learning_rate=1e-2, clip_norm=1e9), batch_of(frames)
    weights = state.hyper.weights
    params = state.potential.params
    gradient = jax.grad(lambda p: loss(state.potential.replace(params=p), batch, weights, KINDS)[0])(params)
    optimizer = optax.adam(float(learning_rate(state.hyper, state.plateau, 0)))
    updates, _ = optimizer.update(gradient, optimizer.init(params))
    expected = optax.apply_updates(params, updates)
    equal(step(state, batch)[0].potential.params, expected, rtol=1e-3, atol=2e-5)


def test_muon_turns_matrices_and_leaves_the_rest_to_adam():
    """Of a matrix an update has singular values alike, of the root mean square that Adam's has."""
    state = make(algorithm="muon", clip_norm=1e9)
    rng = np.random.default_rng(0)
    gradient = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), state.potential.params)
    update, _ = transformation(state.hyper, "muon").update(gradient, state.moments, state.potential.params)
    matrix = np.asarray(update["update_0"]["hidden_scalars"]["kernel"])
    singular = np.linalg.svd(matrix, compute_uv=False) / (0.2 * max(matrix.shape) ** 0.5)
    assert singular.min() > 0.6
    assert singular.max() < 1.3
    # Downhill, of which the step goes the other way.
    assert (matrix * gradient["update_0"]["hidden_scalars"]["kernel"]).sum() > 0
    # Adam's first step, with Nesterov's momentum: of one size, whatever the gradient.
    for one in (update["embedding"], update["energy"]["kernel"], update["messages_0"]["scalar"]["bias"]):
        np.testing.assert_allclose(np.abs(one), 28 / 19, rtol=1e-3)


def test_matrices_of_one_shape_are_turned_as_each_alone():
    state = make(algorithm="muon", clip_norm=1e9)
    params, hyper = state.potential.params, state.hyper

    def dimensions(tree):
        def one(path, x):
            inner = "embedding" not in str(path) and x.ndim == 2 and min(x.shape) > 1
            return MuonDimensionNumbers() if inner else None

        return jax.tree_util.tree_map_with_path(one, tree)

    numbers = {"adam_b1": hyper.beta1, "adam_b2": hyper.beta2, "eps": hyper.epsilon, "consistent_rms": 0.2}
    alone = muon(1.0, muon_weight_dimension_numbers=dimensions, **numbers)
    ours, moments, theirs = transformation(hyper, "muon"), state.moments, alone.init(params)
    rng = np.random.default_rng(0)
    for _ in range(3):
        gradient = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)
        found, moments = jax.jit(ours.update)(gradient, moments, params)
        with jax.default_matmul_precision("highest"):
            wanted, theirs = jax.jit(alone.update)(gradient, theirs, params)
        equal(found, jax.tree.map(jnp.negative, wanted), rtol=1e-4, atol=1e-5)


def test_muon_trains_and_keeps_what_is_frozen(frames):
    state, batch = make(learning_rate=1e-2, algorithm="muon", freeze=["energy_hidden"]), batch_of(frames)
    frozen = np.asarray(state.potential.params["energy_hidden"]["kernel"])
    step = jax.jit(partial(train_step, kinds=KINDS, algorithm="muon"))
    values = []
    for _ in range(30):
        state, out = step(state, batch)
        values.append(float(out["loss"]))
    assert values[-1] < 0.6 * values[0]
    np.testing.assert_array_equal(state.potential.params["energy_hidden"]["kernel"], frozen)


def test_numbers_are_leaves_and_do_not_recompile(frames):
    batch = batch_of(frames)
    count = 0

    def counted(state, batch):
        nonlocal count
        count += 1
        return train_step(state, batch, kinds=KINDS, algorithm="adam")

    step = jax.jit(counted)
    state = make()
    leaves, structure = jax.tree.flatten(state.hyper)
    assert len(leaves) == 22
    for i in range(len(leaves)):
        changed = [x * 0.5 if i == k else x for k, x in enumerate(leaves)]
        step(state.replace(hyper=jax.tree.unflatten(structure, changed)), batch)
    assert count == 1


@pytest.mark.slow
def test_accumulation_averages_gradients(frames):
    one, two = batch_of(frames[:2]), batch_of([frames[2], frames[3]])
    one, two = (collate_like(b, one, two) for b in (one, two))
    both = jax.tree.map(lambda a, b: jnp.stack([a, b]), one, two)
    state = make(clip_norm=1e9)
    weights = state.hyper.weights

    def gradient(batch):
        return jax.grad(lambda p: loss(state.potential.replace(params=p), batch, weights, KINDS)[0])(
            state.potential.params
        )

    mean = jax.tree.map(lambda a, b: 0.5 * (a + b), gradient(one), gradient(two))
    _, out = jax.jit(partial(train_step, kinds=KINDS, algorithm="adam", accumulate=2))(state, both)
    assert float(out["gradient_norm"]) == pytest.approx(float(optax.global_norm(mean)), rel=1e-4)
    assert float(out["sums"]["forces"]["count"]) == 72


def collate_like(batch, *others):
    """Pad a batch to the largest of several."""
    shape = [max(sizes) for sizes in zip(*(b.graph.shape for b in others), strict=True)]
    assert batch.graph.shape[0] == shape[0]
    assert batch.graph.shape[3] == shape[3]
    return batch.replace(graph=batch.graph.pad(*shape))


def test_a_loss_that_is_no_number_changes_nothing(frames, step):
    state, batch = make(), batch_of(frames)
    state, _ = step(state, batch)
    broken = batch.replace(forces=np.where(np.arange(len(batch.forces))[:, None] == 2, np.nan, batch.forces))
    after, _ = step(state, broken)
    assert int(after.failed_at) == 1
    equal(after.replace(failed_at=state.failed_at), state)
    still, _ = step(after, batch)
    equal(still, after)


def test_freeze(frames):
    state = make(freeze=["embedding", "messages_0"], weight_decay=0.5)
    after, _ = jax.jit(partial(train_step, kinds=KINDS, algorithm="adam"))(state, batch_of(frames))
    before, now = state.potential.params, after.potential.params
    equal(before["messages_0"], now["messages_0"])
    equal(before["embedding"], now["embedding"])
    assert not np.array_equal(before["energy"]["kernel"], now["energy"]["kernel"])
    with pytest.raises(ConfigError, match="'mesages_0' fits no parameter"):
        make(freeze=["mesages_0"])


def test_schedules():
    config = make_config(
        {"run": {"epochs": 10}, "optimizer": {"warmup_epochs": 1, "learning_rate": 1.0, "final_fraction": 0.1}}
    )
    hyper = jax.tree.map(jnp.float32, config.hyperparameters(10))
    rates = [float(learning_rate(hyper, Plateau.start(), s)) for s in range(101)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10, rtol=1e-6)
    np.testing.assert_allclose(rates[55], 0.55, rtol=1e-5)
    np.testing.assert_allclose(rates[100], 0.1, rtol=1e-5)
    assert (np.diff(rates[10:]) <= 0).all()
    constant = make_config({"optimizer": {"schedule": "constant", "warmup_epochs": 0}}).hyperparameters(10)
    assert float(learning_rate(jax.tree.map(jnp.float32, constant), Plateau.start(), 10**6)) == pytest.approx(5e-3)


def test_weights_ramp():
    config = make_config({"run": {"epochs": 10}, "loss": {"final_energy_weight": 11.0, "ramp": [0.5, 0.7]}})
    hyper = jax.tree.map(jnp.float32, config.hyperparameters(10))
    found = [float(loss_weights(hyper, s).energy) for s in (0, 50, 60, 70, 100)]
    np.testing.assert_allclose(found, [1, 1, 6, 11, 11], rtol=1e-6)
    assert float(loss_weights(hyper, 100).forces) == 1.0


def test_plateau():
    hyper = jax.tree.map(
        jnp.float32, make_config({"optimizer": {"plateau_patience": 2, "plateau_factor": 0.5}}).hyperparameters(1)
    )
    plateau, factors = Plateau.start(), []
    for value in (1.0, 0.9, 0.95, 0.95, 0.95, 0.8, 0.9, 0.9, 0.9):
        plateau = plateau_step(plateau, hyper, jnp.float32(value))
        factors.append(float(plateau.factor))
    assert factors == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25]
    # Validated every third epoch, one validation without a better loss is three epochs.
    plateau = plateau_step(Plateau.start(), hyper, jnp.float32(1.0), 3.0)
    assert float(plateau_step(plateau, hyper, jnp.float32(2.0), 3.0).factor) == 0.5
    plateau = Plateau.start().replace(factor=jnp.float32(0.25))
    never = jax.tree.map(jnp.float32, make_config({}).hyperparameters(1))
    for _ in range(50):
        plateau = plateau_step(plateau, never, jnp.float32(9.0))
    assert float(plateau.factor) == 0.25


def test_members_of_a_population_are_runs_alone(frames):
    """vmap over states: each member as alone, and one that fails does not stop the other."""
    batch = batch_of(frames)
    states = [make(learning_rate=1e-3), make(learning_rate=4e-3, weight_decay=0.1)]
    both = jax.tree.map(lambda *x: jnp.stack(x), *states)
    one = partial(train_step, kinds=KINDS, algorithm="adam")
    many = jax.jit(jax.vmap(one, in_axes=(0, None)))
    for _ in range(3):
        both, _ = many(both, batch)
    single = jax.jit(one)
    for i, state in enumerate(states):
        for _ in range(3):
            state, _ = single(state, batch)
        equal(jax.tree.map(lambda x, i=i: x[i], both.ema), state.ema, rtol=1e-3, atol=1e-5)
