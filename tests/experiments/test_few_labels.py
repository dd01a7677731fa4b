from experiments import few_labels
from experiments.few_labels import markdown
from experiments.hippocampus import Hippocampus


def row(mean, low, high):
    summary = [{"metric": "dice", "label": "all", "mean": mean, "low": low, "high": high}]
    return {"model": "m", "prompt": "none", "trained_on": 1, "steps": 2, "summary": summary}


def test_the_table_has_an_interval_where_there_is_one():
    table = {"rows": {"many": row(0.5, 0.4, 0.6), "one_patient": row(0.5, None, None)}, "paired_dice": {}}
    lines = markdown(table).splitlines()
    assert next(line for line in lines if "many" in line).endswith("| 0.500 (0.400 to 0.600) |")
    assert next(line for line in lines if "one_patient" in line).endswith("| 0.500 |")


def test_rows_of_the_hippocampus_are_settings_of_adapt(tmp_path):
    plan = Hippocampus(data="x", out=tmp_path, steps=8, steps_3d=20)
    patches, slabs, slices = (
        few_labels._config(plan, row) for row in ("unet3d_few", "slabs_all", "samed_all")
    )
    assert (patches.model, patches.window, patches.steps, patches.train_cases) == (
        "unet-3d-folded", (40, 56, 40), 20, 16,
    )  # fmt: skip
    assert (slabs.adapter, slabs.window, slabs.steps, slabs.validate_every) == ("sd_trans", (5,), 8, 2)
    assert (slices.adapter, slices.window, slices.train_cases) == ("samed", (), None)
