# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 6. The model from the inside
#
# LEIGNN (arXiv:2311.02869) gives every atom F scalars x and F vectors V, nothing of higher order, and every structure one
# global scalar and one global vector. The default here has F/2 traceless symmetric matrices T per atom in place of these
# global nodes. Shapes layer by layer, equivariance, the cutoff, and what global nodes cost.

# %%
import ase.build
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import leignn_jax as leignn
from leignn_jax import testing
from leignn_jax.data import bundled_data
from leignn_jax.models.tensors import BASIS

# %% tags=["parameters"]
POINTS = 101  # of each curve

# %% [markdown]
# ## Layer by layer
#
# `LEIGNN` is a Flax module that is called on a `Graph`; `Potential` holds its parameters. Flax records what every module
# returns. Each layer: messages (neighbours' x, V, T to an atom), update (x, V and T of an atom mix).

# %%
potential = leignn.load_potential("ethanol")
ethanol = leignn.read_frames(bundled_data("ethanol") / "test.extxyz.xz", index=":1")[0]
graph = leignn.Graph.from_ase(ethanol, potential.cutoff, np.float64)
jax.config.update("jax_enable_x64", True)


def inside(graph):
    """What every module returns, by the module's name."""
    model = leignn.LEIGNN(potential.config)
    _, seen = model.apply(
        {"params": potential.params}, graph, capture_intermediates=True, mutable="intermediates"
    )
    return {
        name: value["__call__"][0]
        for name, value in seen["intermediates"].items()
        if name != "__call__"
    }


print(
    f"{len(ethanol)} atoms, {graph.shape[1]} pairs within {potential.cutoff:g} Å, F = {potential.config.features}\n"
)
print(f"{'module':19}{'parameters':>10}   returns")
for name, value in inside(graph).items():
    count = sum(x.size for x in jax.tree.leaves(potential.params[name]))
    print(f"{name:19}{count:10,}   {', '.join(str(x.shape) for x in jax.tree.leaves(value))}")

# %% [markdown]
# `(9, 3, 64)` are vectors: atom, direction, feature; `(9, 5, 32)` matrices, of which five numbers are free. In the first
# layer an atom is its element and nothing more, so that messages are made for 3 elements and not for 9 atoms, and there is
# no V or T to pass on. The last update returns scalars only, since energies are made of them.
#
# ## Equivariance
#
# Turn the molecule by R: scalars must stay, vectors must turn along, V(R r) = R V(r), matrices on both sides,
# T(R r) = R T(r) Rᵀ. Not only at the end, where a test of the energy would look, but inside. The R here reflects too: V are
# true vectors.

# %%
rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0] @ np.diag([1, 1, -1])
turned = ethanol.copy()
turned.positions = ethanol.positions @ rotation.T
before, after = inside(graph), inside(leignn.Graph.from_ase(turned, potential.cutoff, np.float64))

(x, v, t), (x_turned, v_turned, t_turned) = before["update_0"], after["update_0"]
v_rotated = jnp.einsum("ij,ajf->aif", rotation, v)
matrices, matrices_turned = (jnp.einsum("mij,amf->aijf", BASIS, tensor) for tensor in (t, t_turned))
t_rotated = jnp.einsum("ij,ajkf,lk->ailf", rotation, matrices, rotation)
print(f"determinant of R {np.linalg.det(rotation):+.0f}")
print(f"scalars: largest {jnp.abs(x).max():.2f}, largest change {jnp.abs(x_turned - x).max():.1e}")
print(
    f"vectors: largest {jnp.abs(v).max():.2f}, largest |V(R r) - R V(r)| {jnp.abs(v_turned - v_rotated).max():.1e}"
)
print(
    f"matrices: largest {jnp.abs(matrices).max():.2f}, "
    f"largest |T(R r) - R T(r) R^T| {jnp.abs(matrices_turned - t_rotated).max():.1e}"
)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
left.plot(v.ravel(), v_turned.ravel(), ".", ms=2, color="C3", rasterized=True, label="V(r)")
left.plot(
    v_rotated.ravel(), v_turned.ravel(), ".", ms=2, color="C0", rasterized=True, label="R V(r)"
)
left.set(
    xlabel="component before (no unit)", ylabel="component of V(R r)", title="vectors after layer 1"
)
right.plot(x.ravel(), x_turned.ravel(), ".", ms=2, color="C0", rasterized=True)
right.set(xlabel="x(r) (no unit)", ylabel="x(R r)", title="scalars after layer 1")
left.legend(markerscale=5)
for axis in (left, right):
    axis.set_aspect("equal", adjustable="datalim")
    axis.grid(alpha=0.3)

# %% [markdown]
# `leignn_jax.testing` has this and other checks for any model that gives energy and forces: symmetries, derivatives,
# extensivity, padding. Each returns the largest relative deviation, or raises.

# %%
model = testing.as_model(potential)
for check in (
    testing.check_rotation,
    testing.check_translation,
    testing.check_permutation,
    testing.check_forces,
):
    print(f"{check.__name__:20}{check(model, ethanol):.1e}")

# %% [markdown]
# ## The cutoff
#
# In the published formula (`smooth_cutoff=False`) the radial functions vanish at the cutoff, but the
# bias of the filter does not: a pair that crosses it changes the energy at once. By default the
# envelope multiplies the whole filter. Two carbon atoms and untrained models with the same random
# numbers, float64, their biases set to 0.1 (they start at zero and are learned); the energy is shown
# less that of two single atoms, the force is along the bond. In
# the published formula the energy jumps and the force does not know of it: what molecular dynamics
# gains or loses there, no smaller timestep brings back.

# %%
models = {}
for name, smooth in (("smooth (default)", True), ("published", False)):
    config = leignn.preset("small", variant="vanilla_nmu", elements=("C",), smooth_cutoff=smooth)
    untrained = leignn.Potential.create(config, jax.random.key(1))
    # Trained models have a bias in their filters; a new one starts at zero.
    filters = jax.tree_util.tree_map_with_path(
        lambda path, w: w.at[-1].set(0.1) if "filter" in str(path[-1]) else w, untrained.params
    )
    models[name] = testing.as_model(untrained.replace(params=filters))


def dimer(distance):
    return ase.Atoms("C2", positions=[[0, 0, 0], [distance, 0, 0]])


distances = np.linspace(4.9, 5.05, POINTS)
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
for color, (name, model) in zip(("C0", "C3"), models.items(), strict=True):
    answers = [model(dimer(d)) for d in distances]
    alone = 2 * model(ase.Atoms("C")).energy
    axes[0].plot(
        distances,
        [1e3 * (a.energy - alone) for a in answers],
        ".-",
        ms=3,
        lw=1,
        color=color,
        label=name,
    )
    axes[1].plot(
        distances,
        [1e3 * a.forces[1, 0] for a in answers],
        ".-",
        ms=3,
        lw=1,
        color=color,
        label=name,
    )
    jumps = testing.cutoff_jumps(model, dimer(5.0))
    print(
        f"{name:17} jump of the energy {1e3 * jumps.energy:.1e} meV, of the force {1e3 * jumps.forces:.1e} meV/Å"
    )
axes[0].set(xlabel="distance (Å)", ylabel="energy of the pair (meV)")
axes[1].set(xlabel="distance (Å)", ylabel="force (meV/Å)")
axes[0].legend()
for axis in axes:
    axis.axvline(5.0, color="0.5", lw=0.8, ls="--")
    axis.grid(alpha=0.3)

# %% [markdown]
# ## Global nodes are not local
#
# In the published model every atom hears of every other through the mean over all atoms, however far. Two ethanol molecules,
# turned differently, 10 to 1000 Å apart: the energy of both less that of each alone should go to zero. It does so at once
# without global nodes, as in the bundled `ethanol`, and never with them (here an untrained model, on the scale of
# ethanol's forces): it goes to a constant.


# %%
def pair(distance, first=ethanol):
    other = ethanol.copy()
    other.rotate(90, "x", center="COM")
    other.positions[:, 0] += distance
    return first + other


published = leignn.Potential.create(
    leignn.preset("small", variant="leignn", elements=("H", "C", "O")),
    jax.random.key(0),
    scale=float(potential.scale),
)
separations = np.geomspace(10, 1000, 9)
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.4), layout="constrained")
for color, (name, one) in zip(
    ("C3", "C0"), (("global nodes", published), ("without", potential)), strict=True
):
    model = testing.as_model(one)
    both = [
        model(pair(d)).energy - model(pair(d)[:9]).energy - model(pair(d)[9:]).energy
        for d in separations
    ]
    print(f"{name:14} E(A + B) - E(A) - E(B) at 1000 Å: {both[-1]:+.3e} eV")
    axes[0].semilogx(separations, both, "o-", ms=4, color=color, label=name)
axes[0].set(xlabel="distance of the molecules (Å)", ylabel="E(A + B) − E(A) − E(B) (eV)")
axes[0].legend()

# The O-H bond of molecule A is pulled; what does B, 100 Å away, feel?
oxygen = int(np.flatnonzero(ethanol.numbers == 8)[0])
hydrogens = np.flatnonzero(ethanol.numbers == 1)
hydrogen = int(hydrogens[ethanol.get_distances(oxygen, hydrogens).argmin()])
pulls = np.linspace(-0.1, 0.3, 17)
for color, (name, one) in zip(
    ("C3", "C0"), (("global nodes", published), ("without", potential)), strict=True
):
    model = testing.as_model(one)
    reference, felt = model(pair(100.0)).forces[9:], []
    for pull in pulls:
        first = ethanol.copy()
        length = ethanol.get_distance(oxygen, hydrogen)
        first.set_distance(oxygen, hydrogen, length + pull, fix=0)
        felt.append(np.abs(model(pair(100.0, first)).forces[9:] - reference).max())
    axes[1].plot(pulls, 1e3 * np.array(felt), "o-", ms=4, color=color, label=name)
axes[1].set(xlabel="O-H bond of A pulled by (Å)", ylabel="largest change of a force on B (meV/Å)")
for axis in axes:
    axis.grid(alpha=0.3)

# %% [markdown]
# Within one molecule or one periodic cell of fixed size that is what global nodes are for: they see all of it. For
# dissociation, adsorption, or cells of another size than those of the training take a model without them, strictly local
# within layers × cutoff: the default, or `variant="vanilla_nmu"`, the published one less its global nodes.
