"""One picture asked again and again: encoded once, and the mask of a question fed back with the next one."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.images import BadPrompt, Query, check_query, make_prompts, to_target
from medvfm_jax.predict.encoded import Encoded, Halves
from medvfm_jax.predict.segmented import Segmented, of_objects
from medvfm_jax.printable import counted
from medvfm_jax.types import Prompts

CLAMP = 32.0  # SAM 2 bounds logits that it is given back
INSIDE = 10.0  # logit of a pixel in a mask that a user gives, and minus that of one outside


class Interactive:
    """A picture, or a slice of a volume, that was encoded once; ``Segmenter.interactive`` makes one.

    Attributes:
        shape: (H, W) of the picture.
    """

    def __init__(
        self, model: Halves, encoded: Encoded, place: Callable[[NDArray[np.int32]], NDArray[np.int32]]
    ):
        self._model, self._encoded, self._place = model, encoded, place
        self.shape: tuple[int, int] = encoded.frame.original

    def __call__(
        self,
        queries: Sequence[Query],
        previous: Segmented | NDArray | None = None,
        *,
        multimask: bool = False,
    ) -> Segmented:
        """Masks for all that is known of each object by now, and for the mask that was found before.

        Args:
            queries: boxes and clicks of each object, those of earlier questions included; one without either asks
                about its mask alone.
            previous: what an earlier question gave, of which the mask that the model rated best is fed back; or logits
                (Q, h, w) of the model's size, see ``mask_prompt``.
            multimask: three masks for an ambiguous question; meant for the first one, a single click.

        Returns:
            As ``Segmenter``.

        Raises:
            BadPrompt: a query outside the picture, or previous masks of another number or size.
            BadPrompts: a model that takes no masks.

        References:
            Kirillov et al. 2023, "Segment Anything", appendix A ("Training algorithm"),
            https://arxiv.org/abs/2304.02643
            facebookresearch/segment-anything, ``segment_anything/predictor.py`` (``mask_input``);
            facebookresearch/sam2, ``sam2/sam2_image_predictor.py`` (logits are kept within -32 and 32)
        """
        for query in queries:
            check_query(query, self.shape)
        prompts = make_prompts(self._encoded.frame, queries)
        if previous is not None:
            mask = self._fed_back(previous, len(queries))
            if all(query.box is None and len(query.points) == 0 for query in queries):
                # As in the references: beside a mask alone there is no point, not even one of padding.
                points, labels = prompts.points[:, :0], prompts.labels[:, :0]
                prompts = Prompts(points, labels, mask)
            prompts = prompts._replace(mask=mask)
        found = self._model.decode(self._encoded, prompts, multimask=multimask)
        found = of_objects(self._encoded.frame, found, self._model.spec.name)
        return found._replace(labels=self._place(found.labels))

    def refine(
        self, query: Query, previous: Segmented | NDArray | None = None, *, multimask: bool = False
    ) -> Iterator[Segmented]:
        """The clicks of one object one after the other, each with the mask of the one before.

        Args:
            query: the box, if there is one, is asked about first; then the first click is added, then the second, ...
            previous: mask to begin with, as in ``__call__``.
            multimask: three masks for the first question.

        Yields:
            What each question gives; the last one knows all clicks.

        Raises:
            BadPrompt: as ``__call__``.
        """
        first = 0 if query.box is not None or len(query.points) == 0 else 1
        for count in range(first, len(query.points) + 1):
            asked = Query(query.box, query.points[:count], query.labels[:count])
            previous = self([asked], previous, multimask=multimask and count == first)
            yield previous

    def mask_prompt(self, mask: NDArray) -> NDArray[np.float32]:
        """A mask drawn by a user -> logits to give as ``previous``.

        Args:
            mask: (H, W) bool on the grid of the picture, or (Q, H, W).

        Returns:
            (Q, h, w): 10 inside and -10 outside, as in SAM 2's video predictor; a logit that the edge goes through has
            the mean. Interpretation: pixels beside the picture, which SAM fills up with zeros, are outside.

        Raises:
            BadPrompt: a mask of another size.
        """
        masks = np.asarray(mask, bool)
        masks = masks[None] if masks.ndim == 2 else masks
        if masks.shape[1:] != tuple(self.shape):
            raise BadPrompt(
                f"A mask of shape {masks.shape[1:]} does not lie on the picture, which has {self.shape}."
            )
        share = to_target(self._encoded.frame, masks, fill=0.0)
        return np.float32(2 * INSIDE) * share - np.float32(INSIDE)

    def _fed_back(self, previous: Segmented | NDArray, count: int) -> NDArray[np.float32]:
        """(Q, h, w, 1) logits; raises BadPrompt."""
        if isinstance(previous, Segmented):
            best = previous.iou.argmax(1)
            previous = previous.low_res_logits[np.arange(len(best)), best]
        logits, size = np.asarray(previous, np.float32), tuple(self._model.spec.logits_shape)
        if logits.ndim != 3 or logits.shape[1:] != size or len(logits) != count:
            raise BadPrompt(
                f"{counted(count, 'prompt')} with previous masks of shape {logits.shape}; expected "
                f"{(count, *size)}, the logits of the model."
            )
        if self._model.spec.multimask_fallback:  # SAM 2
            logits = logits.clip(-CLAMP, CLAMP)
        return logits[..., None]
