"""Planted toys: models that keep the needle where we say, coalition by coalition."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest

from segregation.errors import ScoreError
from segregation.interventions.rules import Plan
from segregation.prompts.sample import Sample
from segregation.runs.record import Record
from segregation.scores.route_claims import ROUTE_STATEMENTS, route_claims
from segregation.scores.routes import (
    ATTENTION,
    CHANNELS,
    RECURRENCE,
    coalition,
    coalitions,
    recovery,
    route_tables,
    segregation_index,
    shapley,
)

Right = Callable[[frozenset[str], int], bool]
"""Whether a toy writes the clean needle of a sample, with these channels clean."""


def toy(
    right: Right,
    *,
    n: int = 100,
    border: str = "question",
    channels: tuple[str, ...] = CHANNELS,
    corrupt_base: int = 0,
    same_state: int = 0,
) -> list[Record]:
    """Measurements of a toy; its corrupt run gets all needles right but the first ``corrupt_base``.

    In the first ``same_state`` samples both runs leave the same states.
    """
    records = []
    for i in range(n):
        values: dict[str, float] = {"position": 9.0}
        values |= {f"change/{c[0]}": float(c in ("keys", "values") or i >= same_state) for c in channels}
        for size in range(len(channels) + 1):
            for some in itertools.combinations(channels, size):
                ok = right(frozenset(some), i)
                other = not some and i >= corrupt_base
                values |= {f"{coalition(some)}/clean": -1.0 if ok else -51.0, f"{coalition(some)}/corrupt": -9.0}
                values |= {
                    f"{coalition(some)}/clean_exact": float(ok),
                    f"{coalition(some)}/corrupt_exact": float(other),
                }
        records.append(
            Record.of(
                Sample(f"s{i}", "prompt", "target"),
                kind="measurement",
                plan=Plan().to_json(),
                plan_hash=Plan().hash,
                prompt_tokens=9,
                values=values,
                settings={"measure": "routes", "border": border},
                model={"name": "models/toy"},
            )
        )
    return records


def attention(clean: frozenset[str], i: int) -> bool:
    return {"keys", "values"} <= clean


def recurrence(clean: frozenset[str], i: int) -> bool:
    return {"recurrent", "conv"} <= clean


def both(clean: frozenset[str], i: int) -> bool:
    """Either route is enough."""
    return attention(clean, i) or recurrence(clean, i)


def table(right: Right, **options):
    (found,) = route_tables(toy(right, **options))
    return found


@pytest.mark.parametrize(("right", "index"), [(attention, 1.0), (recurrence, -1.0), (both, 0.0)])
@pytest.mark.parametrize("metric", ["clean_exact", "clean"])
def test_the_index_of_planted_routes(right: Right, index: float, metric) -> None:
    found = segregation_index(table(right), metric)
    assert found.value == pytest.approx(index) and found.low <= found.value <= found.high
    assert found.low >= -1 and found.high <= 1
    if metric == "clean_exact":  # every sample says the same, and yet 100 samples are not all samples
        assert found.high - found.low > 0.03


def test_models_of_one_kind_of_layer_have_the_other_route_carry_nothing() -> None:
    assert segregation_index(table(attention, channels=ATTENTION)).value == 1
    assert segregation_index(table(recurrence, channels=RECURRENCE)).value == -1
    assert recovery(table(attention, channels=ATTENTION), RECURRENCE).value == 0
    assert set(shapley(table(attention, channels=ATTENTION))) == {"keys", "values"}


def test_recovery_is_a_ratio_of_means() -> None:
    """Ten samples of which the clean run gets eight; the KV cache alone gets six of these."""

    def right(clean: frozenset[str], i: int) -> bool:
        return i < 8 and (len(clean) == 4 or (attention(clean, i) and i < 6))

    found = table(right, n=10)
    assert recovery(found, CHANNELS).value == 1 and recovery(found, ()).value == 0
    assert recovery(found, ATTENTION).value == pytest.approx(6 / 8)
    assert recovery(found, RECURRENCE).value == 0
    assert segregation_index(found).value == pytest.approx(6 / 8)
    by_ln_p = recovery(found, ATTENTION, "clean")
    assert by_ln_p.value == pytest.approx(6 / 8) and by_ln_p.low < 6 / 8 < by_ln_p.high


def test_intervals_are_as_wide_as_wilsons_where_every_sample_says_the_same() -> None:
    found = recovery(table(attention, n=100), RECURRENCE)
    z2 = 1.959963984540054**2
    assert (found.value, found.low) == (0, 0) and found.high == pytest.approx(z2 / (100 + z2))


def by_permutations(worth: Callable[[frozenset[str]], float]) -> dict[str, float]:
    """Shapley credit by its definition: the mean gain of a channel over all orders."""
    credit = dict.fromkeys(CHANNELS, 0.0)
    for order in itertools.permutations(CHANNELS):
        for place, channel in enumerate(order):
            before = frozenset(order[:place])
            credit[channel] += (worth(before | {channel}) - worth(before)) / math.factorial(len(CHANNELS))
    return credit


def test_credit_is_the_mean_gain_over_all_orders() -> None:
    rng = np.random.default_rng(0)
    draws = {frozenset(some): rng.random(40) < 0.5 for n in range(1, 4) for some in itertools.combinations(CHANNELS, n)}
    draws |= {frozenset(): np.zeros(40, bool), frozenset(CHANNELS): np.ones(40, bool)}

    def right(clean: frozenset[str], i: int) -> bool:
        return bool(draws[clean][i])

    credit = shapley(table(right, n=40))
    expected = by_permutations(lambda clean: draws[clean].mean())
    for channel in CHANNELS:
        assert credit[channel].value == pytest.approx(expected[channel])
        assert credit[channel].low < expected[channel] < credit[channel].high
    assert sum(one.value for one in credit.values()) == pytest.approx(1)


def test_credit_of_dummies_and_of_equals() -> None:
    credit = shapley(table(attention))
    assert [credit[channel].value for channel in CHANNELS] == pytest.approx([0.5, 0.5, 0, 0])
    credit = shapley(table(both))
    assert [credit[channel].value for channel in CHANNELS] == pytest.approx([0.25] * 4)


def test_credit_covers_the_truth_as_often_as_it_says() -> None:
    """Toys whose KV cache is enough in 60% of the samples and the state in the others: the index is 0.2."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(25):
        by_kv = rng.random(40) < 0.6
        found = table(lambda clean, i, by_kv=by_kv: (attention if by_kv[i] else recurrence)(clean, i), n=40)
        index = segregation_index(found)
        covered += index.low <= 0.2 <= index.high
    assert covered >= 21  # 95% of 25 is 24; fewer than 21 happens once in a hundred


def test_what_has_nothing_to_recover_is_refused() -> None:
    with pytest.raises(ScoreError, match="nothing to recover: clean_exact is 0 from the clean memory of toy"):
        recovery(table(lambda clean, i: False), ATTENTION)
    with pytest.raises(ScoreError, match="in every resample"):
        segregation_index(table(lambda clean, i: len(clean) == 4 and i == 0))
    records = toy(attention, n=2)
    del records[1].values["kv/clean"]  # pyright: ignore[reportIndexIssue]
    with pytest.raises(ScoreError, match=r"record 'measurement:s1:.*' has others"):
        route_tables(records)
    assert coalitions()[-1] == "kvrc" and len(set(coalitions())) == 16
    with pytest.raises(ScoreError, match="got state"):
        coalition(["state"])


def claims(records: list[Record]) -> dict[str, str]:
    return {claim.id: claim.verdict for claim in route_claims(records)}


def test_the_claims_of_planted_routes() -> None:
    assert claims(toy(attention)) == {"state-only": "holds", "segregation-index": "holds"}
    assert claims(toy(recurrence)) == {"state-only": "fails", "segregation-index": "fails"}
    assert claims(toy(both)) == {"state-only": "fails", "segregation-index": "fails"}
    assert set(ROUTE_STATEMENTS) == set(claims(toy(attention)))


def test_few_samples_decide_less() -> None:
    """0 of 40 may still be 9%, and 40 of 40 only 91%, but the index is surely above a half."""
    assert claims(toy(attention, n=40)) == {"state-only": "undecided", "segregation-index": "holds"}


def test_claims_need_both_runs_to_write_their_own_needles() -> None:
    weak = toy(lambda clean, i: attention(clean, i) and i >= 10)
    found = {claim.id: claim for claim in route_claims(weak)}
    assert {claim.verdict for claim in found.values()} == {"undecided"}
    assert "the clean run writes 90% of its own needles, 95% are needed" in found["state-only"].note
    found = {claim.id: claim for claim in route_claims(toy(attention, corrupt_base=10))}
    assert {claim.verdict for claim in found.values()} == {"undecided"}
    assert "the corrupt run writes 90%" in found["segregation-index"].note


def test_claims_are_about_the_question_and_tell_the_other_borders() -> None:
    assert claims(toy(attention, border="answer")) == {}
    found = {c.id: c for c in route_claims([*toy(attention), *toy(recurrence, border="needle")])}
    assert found["segregation-index"].measured == 1
    assert "at 'needle' -1.00 [-1.00, -0.95]" in found["segregation-index"].note
    assert "at 'needle': 100% [96, 100] and 0% [0, 4]" in found["state-only"].note
    (only,) = found["state-only"].evidence
    assert only == f"measurement:*:{Plan().hash}:border=*:measure=routes"


def test_a_model_without_recurrent_layers_has_an_index_and_no_claim_about_its_state() -> None:
    found = route_claims(toy(attention, channels=ATTENTION))
    assert [(claim.id, claim.verdict) for claim in found] == [("segregation-index", "holds")]
    assert "this model has no recurrent state, which therefore carries nothing" in found[0].note


def test_a_state_that_is_the_same_in_both_runs_decides_nothing() -> None:
    for claim in route_claims(toy(attention, same_state=2)):
        assert claim.verdict == "undecided" and claim.measured is None
        assert claim.note.startswith("in 2 of 100 samples both runs leave the same state")


def test_a_state_that_is_overruled_is_told() -> None:
    claims = {claim.id: claim for claim in route_claims(toy(attention))}
    assert "with the state alone the other run's needle is written in 0%" in claims["state-only"].note
