"""Free energies of wells, known exactly, by integration and by MBAR; umbrellas pooled; what is refused."""

import ase
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import leignn_jax as leignn
from leignn_jax.differentiable.free_energy import spline_weights
from leignn_jax.errors import ConfigError
from leignn_jax.simulation import PairEnergy, Umbrella
from leignn_jax.simulation.collective_variables import Distance, observed
from leignn_jax.simulation.dynamics import BOLTZMANN
from leignn_jax.simulation.ensembles import Langevin
from leignn_jax.simulation.simple_models import HarmonicWells, IdealGas

pytestmark = pytest.mark.usefixtures("fast_compiles", "x64")
run = leignn.differentiable
KELVIN, SOFT, STIFF, ATOMS = 50.0, 0.5, 1.5, 8
KT = KELVIN * BOLTZMANN
CENTERS = 9.0 * np.stack(np.unravel_index(np.arange(ATOMS), (2, 2, 2)), 1)
COUPLINGS = np.linspace(0.0, 1.0, 4)
# Of 3 ATOMS coordinates, kT/2 ln(k1/k0) each.
EXACT = 3 * ATOMS * 0.5 * KT * np.log(STIFF / SOFT)


def model_at(coupling, stiff=STIFF):
    return HarmonicWells(SOFT + coupling * (stiff - SOFT), jnp.asarray(CENTERS))


def draw(model, atoms, replicas, steps, seed=0, kelvin=KELVIN):
    ensemble = Langevin(kelvin, 0.05)
    system, state = run.start(model, [atoms] * replicas, ensemble, temperature=kelvin, dtype="float64", seed=seed)
    return run.sample(model, ensemble, system, state, 2.0, steps, every=50, discard=steps // 10)


@pytest.fixture(scope="module")
def samples(fast_compiles):
    with jax.enable_x64(True):
        atoms = ase.Atoms(f"He{ATOMS}", CENTERS)
        return [draw(model_at(c), atoms, 4, 6_000, seed) for seed, c in enumerate(COUPLINGS)]


def test_integration_of_wells(samples):
    found = run.thermodynamic_integration(model_at, COUPLINGS, samples)
    assert abs(float(found.value) - EXACT) < 3 * float(found.error) + 1e-3 * EXACT
    assert float(found.error) < 0.03 * EXACT
    # Slopes are averages of squares: (k1 - k0) / 2 of 3 kT / k per atom.
    exact = 0.5 * (STIFF - SOFT) * ATOMS * 3 * KT / (SOFT + COUPLINGS * (STIFF - SOFT))
    assert (np.abs(found.slopes - exact) < 4 * found.slope_errors).all()


def test_mbar_of_wells(samples):
    found = run.free_energies(samples)
    exact = 3 * ATOMS * 0.5 * KT * np.log((SOFT + COUPLINGS * (STIFF - SOFT)) / SOFT)
    assert found.value[0] == 0
    assert found.error[0] == 0
    assert (np.abs(found.value - exact)[1:] < 3.5 * found.error[1:]).all()
    assert found.error[-1] < 0.03 * EXACT
    both = run.thermodynamic_integration(model_at, COUPLINGS, samples)
    assert abs(float(both.value) - found.value[-1]) < 4 * np.hypot(float(both.error), found.error[-1])


def test_the_other_way_round_it_has_the_other_sign(samples):
    forward, backward = run.free_energies(samples), run.free_energies(samples[::-1])
    np.testing.assert_allclose(backward.value[::-1] - backward.value[-1], forward.value, rtol=0, atol=1e-9)


def test_the_slope_of_an_integral(samples):
    def difference(stiff):
        return run.thermodynamic_integration(lambda c: model_at(c, stiff), COUPLINGS[:2], samples[:2]).value

    slope = float(jax.grad(difference)(STIFF))
    step = 1e-4
    expected = float(difference(STIFF + step) - difference(STIFF - step)) / (2 * step)
    # Of the samples that there are, whose weights change.
    assert slope == pytest.approx(expected, rel=1e-5)


def test_weights_of_splines():
    at = np.array([0.0, 0.1, 0.4, 0.7, 1.0])
    weights = spline_weights(at)
    for power in range(4):
        assert weights @ at**power == pytest.approx(1 / (power + 1), rel=1e-12)
    np.testing.assert_allclose(spline_weights(np.array([0.0, 2.0])), [1, 1])
    np.testing.assert_allclose(spline_weights(np.array([0.0, 0.5, 1.0])), [1 / 6, 4 / 6, 1 / 6])


@pytest.mark.slow
def test_umbrellas_pooled_give_the_profile():
    """Windows of a double well whose barrier no one of them crosses by itself, and the density of the well alone."""

    def double_well(params, r):
        return 0.03 * (((r - 3.0) / 0.5) ** 2 - 1) ** 2

    bare = PairEnergy(double_well, {}, 20.0, onset=20.0)
    atoms, distance = ase.Atoms("He2", [[0, 0, 0], [3.0, 0, 0]]), observed(Distance(0, 1))
    windows = [draw(bare + Umbrella(Distance(0, 1), c, 0.3), atoms, 4, 6_000, k) for k, c in enumerate((2.4, 3.0, 3.6))]
    edges = np.linspace(2.3, 3.7, 8)

    def histogram(system, state):
        r = distance(system, state)[:, None]
        return ((r > edges[:-1]) & (r <= edges[1:])).astype(float)

    found = run.reweighted(bare, run.pooled(windows), histogram)
    fine = np.linspace(2.3, 3.7, 701)
    density = fine**2 * np.exp(-double_well({}, fine) / KT)
    whole = np.linspace(1.5, 4.5, 3001)
    norm = np.trapezoid(whole**2 * np.exp(-double_well({}, whole) / KT), whole)
    exact = np.array([np.trapezoid(density[100 * k : 100 * k + 101], fine[100 * k : 100 * k + 101]) for k in range(7)])
    # Relative, each within its errors.
    away = (np.asarray(found.value) - exact / norm) / np.maximum(np.asarray(found.error), 0.02 * exact / norm)
    assert np.abs(away).max() < 4.5, away
    assert float(found.value[3]) < 0.3 * float(found.value[1])


def test_what_is_refused(samples):
    for couplings, given, words in (
        ([0.0], samples[:1], "two numbers or more that grow"),
        ([0.0, 1.0], samples, "one for each of 2 couplings, not 4"),
        (COUPLINGS[::-1], samples, "that grow"),
        (COUPLINGS, samples[0], "one for each of 4 couplings, not 1"),
        ("x", samples, "couplings must be an array of numbers"),
    ):
        with pytest.raises(ConfigError, match=words):
            run.thermodynamic_integration(model_at, couplings, given)
    with pytest.raises(ConfigError, match="model_at must be a function"):
        run.thermodynamic_integration(model_at(0.0), COUPLINGS, samples)
    with pytest.raises(ConfigError, match="model_at of the first coupling must be a Potential"):
        run.thermodynamic_integration(lambda c: c, COUPLINGS, samples)
    with pytest.raises(ConfigError, match="of several temperatures"):
        run.free_energies([samples[0], samples[1].replace(kT=2 * samples[1].kT)])
    with pytest.raises(ConfigError, match="must be a list of samples"):
        run.free_energies(samples[0])
    wider = model_at(0.0) + IdealGas(cutoff=3.0)
    with pytest.raises(ConfigError, match="cutoff is 3 Å, and the lists hold pairs within 1 Å: draw the sample"):
        run.reweighted(wider, samples[0], run.observables.potential_energy)
