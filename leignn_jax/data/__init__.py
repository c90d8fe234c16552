"""From files of DFT frames to padded batches: get, read, label, describe, batch."""

from leignn_jax.data.bundled import bundled_data
from leignn_jax.data.distances import shortest_distances, wall_distances
from leignn_jax.data.labels import Labels, read_labels
from leignn_jax.data.public import get_data, public_data
from leignn_jax.data.readers import iter_frames, read_frames

__all__ = [
    "Labels",
    "bundled_data",
    "get_data",
    "iter_frames",
    "public_data",
    "read_frames",
    "read_labels",
    "shortest_distances",
    "wall_distances",
]
