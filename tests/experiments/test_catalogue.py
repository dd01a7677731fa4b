"""The table of all methods: what its rows are made of, without training any."""

import json

import pytest

from experiments import catalogue
from experiments.pareto_plot import Dot, frontier, pareto_plot
from medvfm_jax import models, systems
from medvfm_jax.adapters.option_values import parse_assignments


def test_every_row_is_a_system_of_a_model_with_options_that_it_has():
    for method in catalogue.METHODS.values():
        spec = models.MODELS[method.model].spec
        assert systems.adapter_config(method.adapter, spec, parse_assignments(method.set))["parts"]


def test_rows_of_a_place_differ_by_the_type_alone_and_tune_the_same_head():
    spec = models.MODELS["lite-medsam"].spec
    placed = {name: method for name, method in catalogue.METHODS.items() if " @ " in name}
    assert len(placed) == 9  # three types at three places
    heads, places = set(), {}
    for name, method in placed.items():
        parts = systems.adapter_config(method.adapter, spec, parse_assignments(method.set))["parts"]
        heads.add(parts.pop("decoder")["at"])
        (part,) = parts.values()
        kind, _, place = name.partition(" @ ")
        places.setdefault(place, set()).add(part["at"].partition("/")[0])
        assert part["kind"] == {"lora": "lora", "ssf": "scale_shift", "bottleneck": "bottleneck"}[kind]
    assert len(heads) == 1
    assert places == {"attention": {"image_encoder"}, "mlp": {"image_encoder"}, "decoder": {"mask_decoder"}}


def test_a_case_has_the_mean_of_its_scores_over_the_seeds():
    def record(*dice):
        return {
            "cases": [{"case": c, "label": "1", "dice": d, "n": 3} for c, d in zip("ab", dice, strict=True)]
        }

    rows = catalogue._mean_of_seeds([record(0.5, 0.25), record(1.0, 0.75)])
    assert [(row["case"], row["dice"], row["n"]) for row in rows] == [("a", 0.75, 3), ("b", 0.5, 3)]


def test_places_are_compared_over_types_and_types_over_places_by_case():
    """Dice = a case's own + 0.2 at the MLP + 0.04 for SSF: exactly those are found, and nothing between the others."""

    def rows(kind, place):
        plus = 0.2 * (place == "mlp") + 0.04 * (kind == "ssf")
        return [
            {"case": c, "label": "foreground", "dice": d + plus}
            for c, d in zip("abc", (0.1, 0.4, 0.5), strict=True)
        ]

    cases = {(k, p): [rows(k, p), rows(k, p)] for k in catalogue._TYPES for p in catalogue._PLACES}
    found = catalogue.differences(cases)
    assert {n: round(d["difference"], 6) for n, d in found["place"].items()} == {
        "attention minus decoder": 0.0, "mlp minus decoder": 0.2, "mlp minus attention": 0.2,
    }  # fmt: skip
    assert {n: round(d["difference"], 6) for n, d in found["type"].items()} == {
        "ssf minus lora": 0.04, "bottleneck minus lora": 0.0, "bottleneck minus ssf": -0.04,
    }  # fmt: skip


def test_a_step_takes_the_mean_time_of_all_but_the_first(tmp_path):
    lines = [
        {"step": 1, "images_per_s": 0.01},
        {"step": 2, "images_per_s": 400.0},
        {"step": 3, "images_per_s": 0.5},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "config.json").write_text('{"batch_size": 2}')
    assert catalogue._step_seconds(tmp_path) == pytest.approx((2 / 400 + 2 / 0.5) / 2)


PLAN = {"few": 16, "steps": 40, "batch_size": 2, "cases": 16, "held_out": "C"}


@pytest.mark.parametrize(("steps", "kept"), [(40, True), (60, False)])
def test_rows_of_an_earlier_table_stay_if_it_was_made_with_the_same_settings(tmp_path, steps, kept):
    before = {
        "plan": PLAN | {"steps": steps},
        "rows": {"nuclei: lora": {"seeds": 3}, "nuclei: unet": {"seeds": 3}},
    }
    (tmp_path / "t.json").write_text(json.dumps(before))
    now = {"plan": PLAN, "rows": {"nuclei: unet": {"seeds": 1}, "nuclei: decoder": {"seeds": 1}}}
    rows = catalogue._with_rows_of_before(now, tmp_path / "t.json")["rows"]
    seeds = {name: row["seeds"] for name, row in rows.items()}
    assert seeds == (
        {"nuclei: decoder": 1, "nuclei: lora": 3, "nuclei: unet": 3}
        if kept
        else {"nuclei: unet": 1, "nuclei: decoder": 1}
    )


@pytest.mark.parametrize(
    ("row", "size"), [("lora", 128), ("ma_sam", 128), ("unet", 128), ("unet-3d-folded", None)]
)
def test_pictures_and_slabs_are_seen_at_the_size_asked_for_and_patches_at_their_own(row, size, tmp_path):
    plan = catalogue.Plan(image_size=128)
    asked = catalogue._adapt(
        plan, catalogue.Data(tmp_path, None), catalogue.METHODS[row], 1, tmp_path / "out"
    )
    assert asked.get("image-size") == size
    assert "image-size" not in catalogue._adapt(
        catalogue.Plan(), catalogue.Data(tmp_path, None), catalogue.METHODS[row], 1, tmp_path / "out"
    )


def test_the_site_that_is_held_out_is_in_no_folder_to_train_on(tmp_path):
    for kind in ("images", "masks", "instances"):
        (tmp_path / "all" / kind).mkdir(parents=True)
        for name in ("a.png", "b.png", "c.png"):
            (tmp_path / "all" / kind / name).write_text(f"{kind} {name}")
    (tmp_path / "all" / "sites.csv").write_text("file,site\na.png,X\nb.png,Y\nc.png,X\n")
    others, held_out = catalogue._without_site(tmp_path / "all", "Y", tmp_path / "out")
    for kind in ("images", "masks", "instances"):
        assert sorted(p.name for p in (others / kind).iterdir()) == ["a.png", "c.png"]
        assert [(p.name, p.read_text()) for p in (held_out / kind).iterdir()] == [("b.png", f"{kind} b.png")]
    with pytest.raises(SystemExit, match="no site Z; it has X, Y"):
        catalogue._without_site(tmp_path / "all", "Z", tmp_path / "out2")


def test_the_frontier_has_those_that_nothing_beats_in_both():
    dots = [Dot("a", 10, 0.5), Dot("b", 10, 0.6), Dot("c", 100, 0.55), Dot("d", 1000, 0.9), Dot("e", 1, 0.1)]
    assert [dot.name for dot in frontier(dots)] == ["e", "b", "d"]


def test_the_plot_names_every_method_and_survives_names_with_signs():
    text = pareto_plot("Dice & cost", [Dot("a < b", 10, 0.5), Dot("free", 0, 0.5)], "cost", "Dice")
    assert "a &lt; b" in text
    assert "Dice &amp; cost" in text
    assert "free" not in text
    assert text.count("<circle") == 1


def test_a_row_that_cannot_be_made_stands_in_the_table_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "_command", lambda name, settings, more: "lora has no site here.")
    plan = catalogue.Plan(
        hippocampus=tmp_path / "data", out=tmp_path / "runs", rows=("lora",), seeds=(3,),
        results=tmp_path / "table.json", plots=tmp_path,
    )  # fmt: skip
    catalogue.run(plan)
    table = json.loads(plan.results.read_text("utf-8"))
    assert table["left_out"] == {"hippocampus: lora, seed 3": "not trained: lora has no site here."}
    assert table["rows"] == {}
    assert "lora has no site here." in catalogue.markdown(table)


def test_a_training_that_was_broken_off_has_its_cost_marked():
    row = {
        "prompt": "box",
        "seeds": 3,
        "resumed": 2,
        "summary": [],
        "trained": 1,
        "delta_bytes": 1,
        "step_s": 1.0,
    }
    table = {"rows": {"nuclei: lora": row | {"peak_mib": 1.0}}}
    assert "nuclei: lora: training was broken off in 2 of 3 seeds" in catalogue.markdown(table)
    table["rows"]["nuclei: lora"]["resumed"] = 0
    assert "broken off" not in catalogue.markdown(table)
