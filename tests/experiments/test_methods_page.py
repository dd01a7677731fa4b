"""docs/methods.md is what the records say: nothing missing, every test there, every figure that of its file."""

import functools
import inspect
import json
import re

import pytest

from experiments import measured
from experiments.covering_tests import ROOT, Untested, covering
from experiments.methods_page import (
    _LOOK_UPS,
    COLUMNS,
    PAGE,
    PYTHON,
    RESULTS,
    _in_words,
    page,
    sections,
)
from medvfm_jax import adapters, compress, distill, losses, metrics, systems
from medvfm_jax.adapters import Adapter
from medvfm_jax.adapters.serialise import KINDS
from medvfm_jax.catalog import differences_of, fidelity_of
from medvfm_jax.federated import Algorithm, Codec, algorithms, codecs, privacy
from medvfm_jax.federated import systems as federated_systems
from medvfm_jax.federated.algorithms.catalog import ALGORITHMS
from medvfm_jax.federated.codecs.catalog import CODECS
from medvfm_jax.models.catalog import MODELS
from medvfm_jax.models.transforms import KINDS as TRANSFORMS

LINK = re.compile(
    r"https://(arxiv\.org/abs/(\d{4}\.\d{4,5}|[a-z-]+/\d{7})|doi\.org/10\.\d{4,9}/\S+|eccv\.ecva\.net/virtual/\d{4}/poster/\d+)"
)


@functools.cache
def rows():
    return sections()


def test_the_page_is_that_of_the_records():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m experiments.methods_page"


@pytest.mark.slow
def test_nothing_of_a_catalog_is_missing():
    for title, catalog in {
        "Systems": systems.SYSTEMS,
        "Federated systems": federated_systems.SYSTEMS,
        "Federated algorithms": ALGORITHMS,
        "Codecs": CODECS,
        "Adapters": KINDS,
        "Models": [name for name in MODELS if not name.endswith("-test")],
        "Transforms of a model": TRANSFORMS,
        "Distillation": distill.RECIPES,
        "Compression": compress.METHODS,
    }.items():
        assert not set(catalog) - {row.name for row in rows()[title]}, title


@pytest.mark.parametrize(
    ("package", "record"),
    [
        (losses, None),
        (metrics, None),
        (privacy, None),
        (adapters, Adapter),
        (algorithms, Algorithm),
        (codecs, Codec),
    ],
    ids=lambda thing: getattr(thing, "__name__", "all"),
)
def test_no_function_of_an_all_is_missing(package, record):
    shown = {row.name for section in rows().values() for row in section}
    functions = {name: getattr(package, name) for name in package.__all__}
    made = {
        name
        for name, f in functions.items()
        if inspect.isfunction(f) and record in (None, inspect.signature(f).return_annotation)
    }
    assert len(made) > 3
    # what the catalogs have by another name
    same = {"context_block": "context"}
    assert not {same.get(name, name) for name in made} - shown - set(_LOOK_UPS)


def test_every_method_has_all_its_columns():
    for section in rows().values():
        for row in section:
            cells = row.cells()
            assert len(cells) == len(COLUMNS)
            assert all(cell.strip() for cell in cells[:-1]), row
            assert all(LINK.fullmatch(source) for source in row.sources), row
            assert (ROOT / row.test).is_file(), row
            assert row.by == PYTHON or row.by.startswith("medvfm "), row
            assert (row.published == "-") == (not row.sources), row


def test_published_systems_algorithms_and_models_have_a_link():
    without = {"local", "centralised", "independent"}
    for title in ("Systems", "Federated systems", "Federated algorithms", "Models"):
        assert {row.name for row in rows()[title] if not row.sources} <= without, title


def test_the_test_of_a_method_names_it_and_a_method_without_one_is_refused():
    assert (
        covering(("krum",), ["federated/algorithms", "federated/core"])
        == "tests/federated/core/test_robust.py"
    )
    with pytest.raises(Untested, match="names no_such_method"):
        covering(("no_such_method",), ["adapters", "losses"])


def test_whether_a_method_is_exact_is_told_by_its_record():
    found = {name: fidelity_of(system) for name, system in systems.SYSTEMS.items()}
    assert found["lora"] == "exact"
    assert found["med_sa"] == found["ma_sam"] == "differs"
    assert found["lora_sam"] == found["3dmedsam"] == found["trans_sam"] == "interpretation"
    assert fidelity_of(ALGORITHMS["hetlora"]) == "interpretation"
    assert fidelity_of(ALGORITHMS["fedavg"]) == "exact"
    assert differences_of(KINDS["scale_shift"]) == (
        "it starts at the identity, in the publication at small random values"
    )
    shown = {row.name: row.published for row in rows()["Adapters"]}
    assert shown["cubic_attention"] == "see system `3dsam_adapter`"


def test_words_of_an_interpretation_stand_first():
    """A reading of ours, or one made without the release, is told in the way that is counted."""
    words = re.compile(r"interpretation|our reading|made from a description", re.IGNORECASE)
    for name, system in systems.SYSTEMS.items():
        if words.search(system.differences):
            assert fidelity_of(system) == "interpretation", name


def test_what_only_python_reaches_is_told():
    by = {(title, row.name): row.by for title, section in rows().items() for row in section}
    assert by["Federated algorithms", "fedopt"] == PYTHON
    assert by["Losses", "hinton"].startswith("medvfm distill --recipe task")
    assert by["Systems", "samed"] == "medvfm adapt --adapter samed"
    assert (
        by["Federated algorithms", "fedprox"] == "medvfm federate --algorithm fedprox --set algorithm.mu=0.01"
    )
    assert by["Adapters", "prompt_tokens"] == "medvfm adapt --adapter vpt"
    assert by["Adapters", "block_exit"] == "medvfm federate --preset fesvibs"
    assert by["Metrics", "surface_distances"] == "medvfm evaluate"


def test_figures_are_those_of_the_files():
    """Every number on the page, searched in the file by hand."""
    nuclei = json.loads((measured.RESULTS / "nuclei.json").read_text())["rows"]["decoder_few"]["summary"][0]
    row = next(row for row in rows()["Systems"] if row.name == "decoder")
    assert f"[Dice {nuclei['mean']:.3f}](results.md#nuclei-2018-data-science-bowl)" in row.measured
    sites = json.loads((measured.RESULTS / "five_sites.json").read_text())["rows"]
    for name in ("fedavg", "fedprox", "scaffold", "local", "centralised"):
        row = next(row for row in rows()["Federated algorithms"] if row.name == name)
        s = sites[name][0]["over_sites"]
        assert (
            f"[Dice {s['mean']:.3f}](results.md#five-hospitals) ({s['low']:.3f} to {s['high']:.3f})"
            in row.measured
        )
    assert "epsilon 8 per patient" in next(row.measured for row in rows()["Codecs"] if row.name == "int8")


def test_a_new_file_of_results_is_shown_by_the_names_in_it(tmp_path):
    summary = [{"metric": "dice", "label": "all", "mean": 0.5, "low": 0.4, "high": 0.6}]
    row = {"model": "vit-b + vpt", "prompt": "none", "trained_on": 7, "steps": 9, "summary": summary}
    (tmp_path / "lungs.json").write_text(json.dumps({"rows": {"x": row}}))
    found = measured.measured("system", "vpt", tmp_path)
    assert found == "[Dice 0.500](results.md) (0.400 to 0.600), lungs, `vit-b`, 7 cases, 9 steps, no prompts"
    assert not measured.measured("system", "lora", tmp_path)
    (tmp_path / "lungs.json").write_text(json.dumps({"rows": {"x": row | {"set": ["vpt.count=3"]}}}))
    measured.figures.cache_clear()
    assert not measured.measured("system", "vpt", tmp_path)  # of those options, not of the system as it comes


def test_sections_of_results_that_are_linked_exist():
    headings = re.findall(r"^## (.*)$", RESULTS.read_text(encoding="utf-8"), re.MULTILINE)
    anchors = {re.sub(r"[^\w]+", "-", heading.lower()).strip("-") for heading in headings}
    assert set(measured.SECTIONS.values()) <= anchors


def test_what_results_only_tell_in_words(tmp_path, monkeypatch):
    results = tmp_path / "results.md"
    results.write_text("| FFA-LoRA, int8, epsilon 8 | FLAP-SAM-style | LiteMedSAM, `samed` |")
    monkeypatch.setattr("experiments.methods_page.RESULTS", results)
    told = [name for name in ("ffa_lora", "int8", "flap_sam", "samed", "lora", "fedavg") if _in_words(name)]
    assert told == ["ffa_lora", "int8", "flap_sam", "samed"]


def test_names_in_the_readme_are_methods():
    """The table of the README names systems and counts losses; both are of the same records."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("| adapters, systems |"))
    named = re.findall(r"`([\w-]+)`", line)
    assert len(named) > 5
    assert not set(named) - set(systems.SYSTEMS)
