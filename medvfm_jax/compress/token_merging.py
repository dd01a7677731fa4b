"""Attention and perceptrons of a plain ViT on fewer tokens."""

from medvfm_jax.adapters.explicit_sites import NO_MATCH, pattern_of
from medvfm_jax.adapters.merged_tokens import merged_tokens, refuse_unmergeable
from medvfm_jax.adapters.sites import Site
from medvfm_jax.compress.calibration import Calibration
from medvfm_jax.compress.record import Compressed, ParamTransform, Subject
from medvfm_jax.compress.sites import modules, with_rest
from medvfm_jax.settings.records import BadConfig, require


def _init(
    subject: Subject,
    calibration: Calibration,
    *,
    share: float = 0.25,
    protected: int = 0,
    at: str = r"image_encoder/blocks_\d+/(attn|mlp)",
) -> Compressed:
    del calibration
    require(0 <= share <= 0.5, "share", share, "from 0 to 0.5")
    sites = modules(subject, at, refuse_unmergeable, "module of a plain ViT that takes tokens (n, c)")
    config = merged_tokens(pattern_of(sites), share, protected).config
    fewest, most = (choose(_tokens(site) for site in sites.values()) for choose in (min, max))
    require(protected < fewest, "protected", protected, f"fewer than the {fewest} tokens that a module sees")
    if int(share * (most - protected)) == 0:
        raise BadConfig(
            f"share is {share:g}: of {most} tokens that is less than one; give a larger --set share."
        )
    facts = {"modules": len(sites), "share": share}
    return with_rest(subject, Compressed({"tokens": config}, {"tokens": {}}, facts), NO_MATCH)


def _tokens(site: Site) -> int:
    return site.x.shape[0]


TRANSFORM = ParamTransform(
    description="attention and perceptrons of a plain ViT see tokens that are alike as one, and every token gets its "
    "group's answer, so that a dense output stays dense (ToMe, Bolya et al. 2023)",
    source="https://arxiv.org/abs/2210.09461",
    init=_init,
    differences="Tokens are merged and unmerged around each module, as Bolya and Hoffman 2023 do, and are compared "
    "by the module's input instead of its keys; attention is not weighted by the size of groups. Attention that "
    "depends on the order of tokens (segments, dilation) keeps all of them. The file is as large as before.",
)
