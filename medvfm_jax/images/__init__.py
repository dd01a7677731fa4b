"""Images with their geometry: read, normalise, fit into a model's frame, restore, simulate prompts, write."""

from medvfm_jax.images.frame import (
    Frame,
    frame_of,
    from_model_points,
    preprocess,
    restore,
    to_model_points,
    to_target,
)
from medvfm_jax.images.image import BadImage, Image
from medvfm_jax.images.instances import distance_map, objects_from_distance
from medvfm_jax.images.prompts import (
    BadPrompt,
    Query,
    box_of,
    centre_point,
    check_query,
    correction_click,
    flip_prompts,
    jitter_box,
    make_prompts,
    points_in,
)
from medvfm_jax.images.reading import read, read_labels
from medvfm_jax.images.volume_prompts import (
    VolumeQuery,
    box_in_volume,
    check_volume_query,
    clicks_in_volume,
    volume_prompts,
)
from medvfm_jax.images.volumes import pile, plane, slices, stack
from medvfm_jax.images.writing import write_mask

__all__ = [
    "BadImage",
    "BadPrompt",
    "Frame",
    "Image",
    "Query",
    "VolumeQuery",
    "box_in_volume",
    "box_of",
    "centre_point",
    "check_query",
    "check_volume_query",
    "clicks_in_volume",
    "correction_click",
    "distance_map",
    "flip_prompts",
    "frame_of",
    "from_model_points",
    "jitter_box",
    "make_prompts",
    "objects_from_distance",
    "pile",
    "plane",
    "points_in",
    "preprocess",
    "read",
    "read_labels",
    "restore",
    "slices",
    "stack",
    "to_model_points",
    "to_target",
    "volume_prompts",
    "write_mask",
]
