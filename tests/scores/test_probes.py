import pytest

from segregation.errors import ScoreError
from segregation.prompts.sample import Sample
from segregation.runs.record import Record
from segregation.scores.probes import patch_rows, probe_rows
from segregation.scores.statistics import Interval, difference, wilson


def measured(name: str, values: dict[str, float], settings: dict, metadata: dict | None = None, model: str = "m"):
    sample = Sample(id=name, prompt="p", target="t", metadata=metadata or {})
    outcome = {"values": values, "settings": settings, "model": {"name": f"models/{model}"}}
    return Record.of(sample, kind="measurement", plan='{"rules":[]}', plan_hash="h", prompt_tokens=1, **outcome)


def probe(layer: int, distance: int, correct: int, *, n: int = 40, target: str = "identity", feature="recurrent"):
    return measured(
        f"{target}/{feature}/{layer}/{distance}",
        {"correct": float(correct), "n": float(n), "shuffled_correct": 50.0, "shuffled_n": 200.0, "chance": 0.25},
        {"measure": "linear-probe"},
        {"target": target, "feature": feature, "layer": layer, "distance": distance},
    )


def answer(
    way: str, own: float | int, other: float | int, own_ln: float | int, other_ln: float | int
) -> dict[str, float]:
    found = {"own": own, "other": other, "own_loglikelihood": own_ln, "other_loglikelihood": other_ln}
    return {f"{way}/{name}": float(value) for name, value in found.items()}


def exchanges(n: int = 4) -> list[Record]:
    records = []
    for i in range(n):
        settings = {"measure": "interchange", "distance": 16}
        values = answer("states", 1, 0, -1 - i, -50) | answer("keys_values", 0, float(i > 0), -61, -2)
        records.append(measured(f"s{i}", answer("nothing", 1, 0, -1, -52), {"measure": "untouched"}))
        records.append(measured(f"s{i}", values, settings))
    return records


def test_probes_in_the_order_of_layers_and_distances_with_their_intervals():
    rows = probe_rows([probe(2, 16, 10), probe(2, 4, 30), probe(0, 4, 40), *exchanges()])
    assert [(row.layer, row.distance) for row in rows] == [(0, 4), (2, 4), (2, 16)]
    assert rows[1].accuracy == wilson(30, 40)
    assert rows[1].shuffled == wilson(50, 200)
    assert rows[1].selectivity.value == 0.5
    assert rows[2].selectivity.low < 0 < rows[2].selectivity.high
    assert {row.model for row in rows} == {"m"}


def test_exchanges_are_compared_with_the_same_samples_untouched():
    rows = {row.exchanged: row for row in patch_rows([*exchanges(), probe(0, 0, 1)])}
    assert rows["nothing"].distance is None
    assert rows["nothing"].own == wilson(4, 4)
    assert rows["states"].other == wilson(0, 4)
    assert rows["states"].own_change.value == -1.5  # the mean of 0, -1, -2, -3
    assert rows["states"].own_change.low < -1.5 < rows["states"].own_change.high
    assert rows["states"].other_change == Interval(2.0, 2.0, 2.0, 4)
    assert rows["keys_values"].other == wilson(3, 4)
    assert (rows["keys_values"].own_change.value, rows["keys_values"].other_change.value) == (-60, 50)


def test_an_exchange_without_its_untouched_sample_is_refused():
    with pytest.raises(ScoreError, match="1 samples of m have no such record, for example 's1'"):
        patch_rows([record for record in exchanges() if record.sample_id != "s1" or record.settings.get("distance")])
    with pytest.raises(ScoreError, match="lacks"):
        probe_rows([measured("a", {"correct": 1.0}, {"measure": "linear-probe"})])


def test_the_interval_of_a_difference_is_newcombes():
    """Newcombe 1998, table II: 56/70 against 48/80 by method 10 is 0.0524 to 0.3339."""
    found = difference(wilson(56, 70), wilson(48, 80))
    assert found.value == pytest.approx(0.2)
    assert (round(found.low, 4), round(found.high, 4)) == (0.0524, 0.3339)
