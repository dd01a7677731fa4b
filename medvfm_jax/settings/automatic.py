"""Settings of automatic masks: a grid of points, and what is kept of the masks it gives."""

from dataclasses import dataclass

from medvfm_jax.settings.records import require

MOST_POINTS = 512  # along a side
MOST_LAYERS = 5  # of crops; the fifth has 1024 of them


@dataclass(frozen=True)
class AutomaticConfig:
    """What ``predict.automatic_masks`` asks the model, and which of its masks it keeps.

    The names and the numbers are those of Segment Anything's automatic mask generator; shares and scores lie between 0
    and 1, sides and areas are in pixels of the picture.

    Attributes:
        points_per_side: points along each side of the picture, a mask (or three) each.
        points_per_batch: points that the decoder sees at once; more are faster and take more memory.
        pred_iou: least IoU with the object that the model expects of a mask.
        stability: least stability score of a mask, see ``stability_scores``.
        stability_offset: of the logits, by which the threshold is moved both ways for that score.
        box_nms: of two masks whose boxes have a larger IoU, the one rated worse goes.
        crop_layers: layers of crops beside the whole picture; layer i has 4 to the power of i crops.
        crop_overlap: share of the shorter side by which crops of the first layer overlap, halved in each further one.
        crop_nms: the same as box_nms between the masks of different crops, of which the smaller crop's stays.
        crop_points_downscale: the grid of layer i has points_per_side divided by this to the power of i along a side.
        min_area: holes and islands of fewer pixels are filled and removed; 0 leaves masks as they are.

    Raises:
        BadConfig: a number outside its range.
    """

    points_per_side: int = 32
    points_per_batch: int = 64
    pred_iou: float = 0.88
    stability: float = 0.95
    stability_offset: float = 1.0
    box_nms: float = 0.7
    crop_layers: int = 0
    crop_overlap: float = 512 / 1500
    crop_nms: float = 0.7
    crop_points_downscale: int = 1
    min_area: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers without a meaning."""
        points = 1 <= self.points_per_side <= MOST_POINTS
        require(points, "points_per_side", self.points_per_side, f"a number from 1 to {MOST_POINTS}")
        require(self.points_per_batch >= 1, "points_per_batch", self.points_per_batch, "1 or more")
        for name in ("pred_iou", "stability", "box_nms", "crop_nms"):
            value = getattr(self, name)
            require(0 <= value <= 1, name, value, "a number from 0 to 1")
        positive = 0 < self.stability_offset < float("inf")
        require(positive, "stability_offset", self.stability_offset, "a number above 0")
        layers = 0 <= self.crop_layers <= MOST_LAYERS
        require(layers, "crop_layers", self.crop_layers, f"a number from 0 to {MOST_LAYERS}")
        require(0 <= self.crop_overlap < 1, "crop_overlap", self.crop_overlap, "a share from 0 to below 1")
        require(
            self.crop_points_downscale >= 1,
            "crop_points_downscale",
            self.crop_points_downscale,
            "1 or more",
        )
        require(self.min_area >= 0, "min_area", self.min_area, "a number of pixels, 0 or more")
