from experiments.few_labels import markdown


def row(mean, low, high):
    summary = [{"metric": "dice", "label": "all", "mean": mean, "low": low, "high": high}]
    return {"model": "m", "prompt": "none", "trained_on": 1, "steps": 2, "summary": summary}


def test_the_table_has_an_interval_where_there_is_one():
    table = {"rows": {"many": row(0.5, 0.4, 0.6), "one_patient": row(0.5, None, None)}, "paired_dice": {}}
    lines = markdown(table).splitlines()
    assert next(line for line in lines if "many" in line).endswith("| 0.500 (0.400 to 0.600) |")
    assert next(line for line in lines if "one_patient" in line).endswith("| 0.500 |")
