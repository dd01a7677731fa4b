"""`segment`: masks of unlabelled pictures and volumes, from boxes, clicks, or a prompt-free delta."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax import Array
from numpy.typing import NDArray

from medvfm_jax import traces
from medvfm_jax.images import (
    Image,
    Query,
    VolumeQuery,
    check_query,
    check_volume_query,
    make_prompts,
    pile,
    plane,
    preprocess,
    restore,
    stack,
)
from medvfm_jax.images.frame import Limits
from medvfm_jax.images.geometry import slice_axis
from medvfm_jax.images.preparation import slices_first
from medvfm_jax.images.tiles import tiled
from medvfm_jax.predict.encoded import Halves
from medvfm_jax.predict.ensemble import Member, mean
from medvfm_jax.predict.predictor import (
    class_of_objects,
    classes_of,
    finite_logits,
    probabilities_of,
    told_apart,
)
from medvfm_jax.predict.ready import Ready
from medvfm_jax.predict.segmented import Segmented, into, numbered
from medvfm_jax.predict.volume_prediction import label_slices, resolved_overlap
from medvfm_jax.predict.volume_prompts import prompted_labels
from medvfm_jax.printable import counted
from medvfm_jax.settings.automatic import AutomaticConfig
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.types import Delta, Params, Prediction, PromptKind, Prompts

if TYPE_CHECKING:
    from medvfm_jax.export.frozen_encoder import FrozenEncoder
    from medvfm_jax.predict.automatic_masks import AutomaticMasks
    from medvfm_jax.predict.brain_extraction import BrainExtractor
    from medvfm_jax.predict.interactive import Interactive
    from medvfm_jax.predict.propagation import Propagator


class Segmenter:
    """A model with its delta, compiled once per number of prompts.

    multimask: of the three masks SAM offers for an ambiguous prompt, take the one it rates best.
    overlap: of windows, for models of slabs, patches and tiles; half a window unless given.
    say: told when a program has to be compiled first.
    propagator: follows objects that are prompted on one slice of a volume through all slices.
    largest: classes of which the largest component alone is kept, of a model without prompts.
    others: whose probabilities are averaged with these.
    extractor: finds the one class of a volume as a whole, and then nothing else is asked.
    encoder: encodes pictures outside JAX.
    """

    def __init__(
        self,
        ready: Ready,
        *,
        multimask: bool = False,
        overlap: float | None = None,
        say: Callable[[str], None] = lambda text: None,
        propagator: "Propagator | None" = None,
        largest: tuple[int, ...] = (),
        others: Sequence["Segmenter"] = (),
        extractor: "BrainExtractor | None" = None,
        encoder: "FrozenEncoder | None" = None,
    ):
        self._say, self._multimask, self._propagator = say, multimask, propagator
        self._largest, self._others, self._extractor = largest, tuple(others), extractor
        self._spec, self._weights = ready.spec, (ready.params, jax.device_put(ready.delta))
        self._overlap = resolved_overlap(self._spec, overlap)
        self._trained, self._preparation = ready.metadata or {}, ready.preparation
        # What could not be checked about the deltas.
        self.note = "; ".join(note for note in (ready.note, *(other.note for other in others)) if note)
        self._encoder = encoder
        what = "segment" if encoder is None else "segment an embedding"
        self._words = [what, *ready.words, multimask] if ready.words else None
        self._halves = Halves(ready, say, encoder)
        self._programs: dict[Any, Callable[..., Any]] = {}
        options = {"multimask": True} if multimask else {}

        def apply(params: Params, delta: Delta, image: Array, prompts: dict[str, Array]) -> dict[str, Array]:
            adapted = ready.adapted()
            function = (
                adapted.apply if encoder is None else adapted.decode
            )  # of an image, or of its embedding
            found = function(params, delta, image, Prompts(**prompts) if prompts else None, **options)
            present = {"logits": found.logits, "iou": found.iou}
            return {name: value for name, value in present.items() if value is not None}

        self._apply = apply

    @property
    def runtime(self) -> Mapping[str, Any] | None:
        """What encodes pictures outside JAX, None where JAX does."""
        return None if self._encoder is None else self._encoder.record

    @property
    def prompts(self) -> tuple[PromptKind, ...]:
        """Kinds of prompts the base weights, or the delta, were trained for."""
        kinds: dict[str, tuple[PromptKind, ...]] = {
            "mixed": ("box", "point"),
            "box": ("box",),
            "point": ("point",),
        }
        learned = kinds.get(self._trained.get("prompt", ""), ())
        return (*self._spec.prompts, *(kind for kind in learned if kind not in self._spec.prompts))

    @property
    def labels(self) -> dict[int, str]:
        """Names of the numbers in a mask of a prompt-free model, background included; {} with prompts."""
        if self._extractor is not None:
            return self._extractor.labels
        return (
            {index: name for name, index in self._trained.get("labels", {}).items()} if self.semantic else {}
        )

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels the delta was trained on, () where none were named; "CT" means Hounsfield."""
        return tuple(self._trained.get("channel_names", ()))

    @property
    def member(self) -> Member:
        """What an ensemble has to agree on."""
        return Member(self._spec, self._preparation, self._trained)

    @property
    def seen(self) -> int:
        """Channels of an image that reach the model; of more the first ones do."""
        return self._spec.input_shape[-1]

    def filled_up(self, image: Image) -> tuple[int, ...] | None:
        """The window (D, H, W) of a patch, or (D,) of a slab, if the volume is smaller: the rest of it is zeros."""
        if self._spec.rank == 2 or not image.is_volume or self._extractor is not None:
            return None
        window = self._spec.input_shape[:3] if self._spec.resize == "none" else self._spec.input_shape[:1]
        size = self._grid(image)
        return window if any(n < w for n, w in zip(size, window, strict=False)) else None

    def _grid(self, image: Image) -> tuple[int, ...]:
        """(D, H, W) of a volume as the model sees it; raises BadImage."""
        axis = slice_axis(image)
        return self._preparation.grid(slices_first(image.grid, axis), image.spacing, axis, str(image.path))

    @property
    def semantic(self) -> bool:
        """Whether the model takes no prompts."""
        return self._spec.task == "semantic"

    @property
    def in_tiles(self) -> bool:
        """Whether pictures are seen in tiles, whose probabilities are blended."""
        return self._spec.tile is not None

    def __call__(
        self,
        image: Image,
        queries: Sequence[Query] = (),
        index: int | None = None,
        track: Callable[[Sequence[int]], Iterable[int]] = iter,
    ) -> Segmented:
        """Picture or volume, prompts in its pixels -> masks.

        Without prompts every slice of a volume is segmented, one after the other as ``track`` gives their
        numbers back (to show progress), through windows if the model sees slabs or patches; with prompts the slice
        ``index``. Raises BadConfig if the model needs prompts and there are none, or the other way round, or if a
        volume comes without a slice, or with other channels than the delta was trained on; BadPrompt for prompts
        outside the picture.
        """
        self.check(image, queries, index)
        found = self._found(image, queries, index, track)
        if not self._largest:
            return found
        # Its scipy.ndimage takes a third of a second.
        from medvfm_jax.predict.largest_component import keep_largest

        return found._replace(labels=keep_largest(found.labels, self._largest))

    def _found(
        self,
        image: Image,
        queries: Sequence[Query],
        index: int | None,
        track: Callable[[Sequence[int]], Iterable[int]],
    ) -> Segmented:
        """Masks with all their components."""
        if not image.is_volume and self._others:
            return Segmented(self._labels(image.array))
        if not image.is_volume:
            return self._picture(image.array, queries)
        if self._extractor is not None:
            return Segmented(self._extractor(image))
        if self.semantic:
            predict = self._labels if self._spec.rank == 2 else self._probabilities
            planes = label_slices(
                self._spec,
                image,
                self.channels,
                predict,
                overlap=self._overlap,
                track=track,
                preparation=self._preparation,
            )
            kind = np.min_scalar_type(
                self._spec.classes - 1
            )  # at 32 bits it would be twice as large as the scan
            return Segmented(stack((found.astype(kind) for found in planes), image))
        if self._propagator is not None:
            self._say(f"compiling {self._spec.name} ...")
            followed = self._propagator(image, queries, index, multimask=self._multimask, track=track)
            return Segmented(followed.labels, iou=followed.iou, object_score=followed.object_score)
        found = self._picture(self._plane(image, index), queries)
        return found._replace(labels=into(image, found.labels, index))

    def in_volume(
        self,
        image: Image,
        queries: Sequence[VolumeQuery],
        track: Callable[[Sequence[int]], Iterable[int]] = iter,
    ) -> Segmented:
        """Volume, boxes and points in its voxels -> masks, of a model that sees patches and takes prompts.

        Args:
            image: volume.
            queries: one for each object.
            track: shows progress over the objects.

        Returns:
            Labels on the volume's own grid, object i numbered i + 1.

        Raises:
            BadConfig: another model, or a picture.
            BadPrompt: see ``check_volume_query``.
            BadImage: a volume without a voxel size where the weights want one.
        """
        self.check_in_volume(image, queries)
        return Segmented(
            prompted_labels(
                self._spec, image, queries, self.channels, self._preparation, self._predict, track
            )
        )

    def check_in_volume(self, image: Image, queries: Sequence[VolumeQuery]) -> None:
        """Raise for prompts that do not fit the model or the volume; see ``in_volume``."""
        self._check_channels(image)
        if self._spec.rank == 2 or self.semantic:
            raise BadConfig(
                f"{self._spec.name} takes no prompts in a volume; leave out --point-3d and --box-3d, which are for "
                "models like sam-med3d."
            )
        self._grid(image)
        for query in queries:
            check_volume_query(query, self._spec, pile(image.array, slice_axis(image)).shape[:3])

    def _refuse_patches(self) -> None:
        """Raise BadConfig for a model that is asked in volumes, where a picture or a slice is asked about."""
        if self._spec.rank == 3 and not self.semantic:
            raise BadConfig(
                f"{self._spec.name} sees volumes: ask it with --point-3d Z Y X LABEL or --box-3d Z0 Y0 X0 Z1 Y1 X1."
            )

    def check(self, image: Image, queries: Sequence[Query], index: int | None) -> None:
        """Raise for prompts that do not fit the model or the image; see ``__call__``."""
        self._refuse_patches()
        self._check_channels(image)
        what = "This delta" if self._trained else self._spec.name
        if self.semantic and queries:
            raise BadConfig(f"{what} segments without prompts; leave out --box and --point.")
        if not self.semantic and not queries:
            raise BadConfig(f"{self._spec.name} needs a prompt: give --box X0 Y0 X1 Y1 or --point X Y LABEL.")
        if not image.is_volume and self._propagator is not None:
            raise BadConfig(f"{image.path} is a picture: there is nothing to follow objects through.")
        if self.semantic and image.is_volume and index is not None:
            raise BadConfig(f"{what} segments every slice; leave out --slice.")
        if image.is_volume:
            self._grid(image)
        shape = image.grid if self.semantic and image.is_volume else self._asked(image, index)
        for query in queries:
            check_query(query, shape)

    def _check_channels(self, image: Image) -> None:
        """Raise for an image with other channels, or of other rank, than the model takes."""
        name, count = self._spec.name, image.array.shape[-1]
        expected = max(1, len(self.channels))  # a picture of one channel may be in grey or in colour
        if count != expected and (image.is_volume or expected > 1):
            times = " or time points" if image.is_volume and count > 1 else ""
            what = f"{image.path} has shape {image.array.shape}: {counted(count, 'channel')}{times}; "
            if self.channels:
                what += f"the delta was trained on {expected} ({', '.join(self.channels)})."
            else:
                what += f"{name} takes a volume of 1 channel."
            raise BadConfig(f"{what} Keep one time point." if times and expected == 1 else what)
        if self._spec.rank == 3 and not image.is_volume:
            raise BadConfig(f"{image.path} is a picture; {name} was trained to segment volumes.")

    def _asked(self, image: Image, index: int | None) -> tuple[int, int]:
        """(H, W) of the picture, or of the slice of a volume, that is asked about; raises BadConfig without it."""
        if not image.is_volume and index is not None:
            raise BadConfig(f"{image.path} is a picture and has no slices; leave out --slice.")
        if not image.is_volume:
            return image.grid
        axis = slice_axis(image)
        count = image.grid[axis]
        if index is None or not 0 <= index < count:
            raise BadConfig(
                f"{image.path} is a volume of {counted(count, 'slice')}: say which one the prompts belong to, "
                f"--slice 0 to {count - 1}."
            )
        width, height = (n for a, n in enumerate(image.grid) if a != axis)
        return height, width

    def check_automatic(self, image: Image, index: int | None) -> None:
        """Raise BadConfig if masks of a grid of points cannot be had of this model or this image."""
        self._refuse_patches()
        self._check_channels(image)
        if self.semantic:
            raise BadConfig("This delta segments without prompts already; leave out --automatic.")
        if "point" not in self.prompts:
            from medvfm_jax.models import MODELS  # imports flax

            named = (name for name, entry in MODELS.items() if not name.endswith("-test"))
            fit = [n for n in named if MODELS[n].spec.rank == 2 and "point" in MODELS[n].spec.prompts]
            raise BadConfig(
                f"{self._spec.name} was trained with {' and '.join(self.prompts)} prompts only, and automatic masks "
                f"come from a grid of points. Take {', '.join(fit[:-1])} or {fit[-1]}, or a run of "
                f"{self._spec.name} that was adapted with --prompt point."
            )
        self._asked(image, index)

    def automatic(
        self,
        image: Image,
        config: AutomaticConfig | None = None,
        index: int | None = None,
        track: Callable[[Sequence[int]], Iterable[int]] = iter,
        *,
        multimask: bool | None = None,
    ) -> "AutomaticMasks":
        """Masks of everything in a picture, or in a slice of a volume, from a grid of points.

        Args:
            image: picture or volume.
            config: the grid, and which masks are kept; by default as in Segment Anything.
            index: slice of a volume.
            track: shows progress over the batches of points, whose numbers it gives back.
            multimask: three masks per point; by default of a pretrained model, as in the reference, and one of a model
                with a delta, which was trained to give one.

        Returns:
            The masks on the picture's own grid, the best first; of a volume those of the slice, while ``labels`` are
            those of the whole volume.

        Raises:
            BadConfig: a model that was not trained with points, or a volume without a slice.

        References:
            Kirillov et al. 2023, "Segment Anything", appendix B, https://arxiv.org/abs/2304.02643
        """
        from medvfm_jax.predict.automatic_masks import automatic_masks

        self.check_automatic(image, index)
        config = config or AutomaticConfig()
        several = not self._trained if multimask is None else multimask
        found = automatic_masks(
            self._halves, self._plane(image, index), config, multimask=several, track=track
        )
        return found._replace(labels=into(image, found.labels, index))

    def interactive(self, image: Image, index: int | None = None) -> "Interactive":
        """A picture, or a slice of a volume, encoded once, to be asked again and again.

        Args:
            image: picture or volume.
            index: slice of a volume.

        Returns:
            What is called with the prompts known by now and the masks found before (``previous=``).

        Raises:
            BadConfig: a model without prompts, or a volume without a slice.
        """
        from medvfm_jax.predict.interactive import Interactive

        self._refuse_patches()
        self._check_channels(image)
        if self.semantic:
            raise BadConfig("This delta segments without prompts: there is no mask to refine.")
        self._asked(image, index)
        encoded = self._halves.encode(self._plane(image, index))
        return Interactive(self._halves, encoded, lambda labels: into(image, labels, index))

    def _plane(self, image: Image, index: int | None) -> NDArray:
        """The picture, or the slice of a volume as in training."""
        if not image.is_volume:
            return image.array
        scale = self._preparation.scale(image.array, self.channels)
        return scale(plane(image.array, slice_axis(image), index))

    def _labels(self, picture: NDArray) -> NDArray[np.int32]:
        if self._others or self.in_tiles:
            return self._probabilities(picture)[classes_of(self._spec)].argmax(0).astype(np.int32)
        return self._picture(picture, ()).logits[classes_of(self._spec)].argmax(0).astype(np.int32)

    def _probabilities(self, window: NDArray) -> NDArray[np.float32]:
        """Picture (H, W, C), or slab or patch (D, H, W, C) -> probability of each class, classes first."""
        own = self._own_probabilities(window)
        return mean([own, *(other._own_probabilities(window) for other in self._others)])

    def _own_probabilities(self, window: NDArray) -> NDArray[np.float32]:
        if self.in_tiles:
            return tiled(self._spec, window, self._overlap, self._seen)
        return self._seen(window)

    def _seen(self, window: NDArray, limits: Limits | None = None) -> NDArray[np.float32]:
        """Probabilities, and the distance of a model with one, of what the model sees at once."""
        prepared, frame = preprocess(self._spec, window, limits)
        low = finite_logits(self._predict(prepared, {}).logits, self._spec.name)
        return probabilities_of(self._spec, restore(frame, low))

    def _picture(self, picture: NDArray, queries: Sequence[Query]) -> Segmented:
        if self.in_tiles:
            if not self._spec.distance_map:
                return Segmented(self._labels(picture))
            *classes, distance = self._own_probabilities(picture)
            labels, objects = told_apart(np.stack(classes), distance)
            return Segmented(objects, classes=class_of_objects(objects, labels))
        prepared, frame = preprocess(self._spec, picture)
        prompts = make_prompts(frame, queries)._asdict() if queries else {}
        low = self._predict(prepared, {name: value for name, value in prompts.items() if value is not None})
        logits = restore(frame, finite_logits(low.logits, self._spec.name))
        if self._spec.distance_map:
            from scipy import special

            labels, objects = told_apart(logits[:-1], special.expit(logits[-1]))
            return Segmented(
                objects, logits, np.asarray(low.logits), classes=class_of_objects(objects, labels)
            )
        if self.semantic:
            return Segmented(logits.argmax(0).astype(np.int32), logits, np.asarray(low.logits))
        return numbered(low, logits)

    def _predict(self, image: NDArray, prompts: dict[str, NDArray]) -> Prediction:
        if self._encoder is not None:
            image = self._encoder.encode(image)
        shape = tuple((name, value.shape) for name, value in prompts.items())
        if shape not in self._programs:
            inputs = (*self._weights, image, prompts)
            self._programs[shape] = traces.program(
                self._words,
                self._apply,
                *inputs,
                announce=lambda: self._say(f"compiling {self._spec.name} ..."),
            )
        return Prediction(**self._programs[shape](*self._weights, image, prompts))
