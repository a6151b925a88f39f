"""What the contract suite finds: which contracts stand for which column, and what a run of them said of each family."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from segregation.models.family import Ability

YES, NO, NONE = "yes", "no", "–"
NO_LAYERS = ("it has no recurrent layers", "it has no attention layers")
"""The reasons where what is asked is about layers that the model does not have."""


@dataclass(frozen=True)
class Column:
    """One column of the table.

    Attributes:
        title: its heading.
        meaning: what a ``yes`` says.
        tests: the contracts that it stands for.
        abilities: what of ``Family.cannot`` is about it.
    """

    title: str
    meaning: str
    tests: tuple[str, ...]
    abilities: "tuple[Ability, ...]" = ()


COLUMNS = (
    Column(
        "opens",
        "its parts are found by what they do, a config field that is not understood is refused by name, and an empty "
        "plan changes nothing, bit for bit",
        (
            "test_parts_are_those_that_act",
            "test_what_is_not_understood_is_refused_by_name",
            "test_doing_nothing_changes_nothing",
        ),
    ),
    Column(
        "heads",
        "rules about attention heads and mixers, in every phase, equal plain PyTorch hooks bit for bit; heads chosen "
        "by score are those that a pattern computed by hand chooses",
        (
            "test_ablating_and_keeping_heads_equals_hooks",
            "test_top_heads_are_those_of_a_pattern_computed_by_hand",
            "test_both_mixers_of_a_layer_are_edited_by_one_plan",
        ),
    ),
    Column(
        "tokens",
        "rules about tokens equal plain attention whose probabilities are edited by hand; eager and sdpa agree",
        (
            "test_token_rules_equal_plain_attention_with_its_probabilities_edited",
            "test_eager_and_sdpa_are_one_function_under_plans",
            "test_pattern_times_values_is_what_attention_returns",
        ),
    ),
    Column(
        "mixers",
        "`AblateRecurrent` with zeros, a mean or another output equals hooks on the mixers",
        ("test_zero_equals_hooks_on_mixers", "test_means_and_resampled_outputs_are_those_of_hooks"),
    ),
    Column(
        "skip",
        '`AblateRecurrent("skip")` equals a memory that is put back after every such token',
        ("test_skipping_puts_back_what_was_remembered", "test_what_is_skipped_is_not_written"),
        ("skip",),
    ),
    Column(
        "reset",
        "`ResetState` equals a state that is set to zero by hand",
        ("test_resetting_sets_the_state_to_zero",),
        ("reset",),
    ),
    Column(
        "states",
        "recurrent states, and the buffers of convolutions (which is all that LFM2 has), are read as the plain model "
        "holds them, after the prompt and after every new token",
        ("test_states_are_those_that_a_plain_model_holds",),
        ("state",),
    ),
    Column(
        "contributions",
        "the scan can be taken apart token by token: states along the prompt, contributions, knock-outs",
        ("test_states_along_a_prompt_are_those_of_reading_it_token_by_token",),
        ("recurrence",),
    ),
    Column(
        "patch",
        "which channels `PatchState` and forks exchange as a cache edited by hand does (`yes` is all four)",
        ("test_a_patch_equals_a_cache_edited_by_hand", "test_channels_of_two_runs_are_put_together"),
        ("state", "conv", "keys"),
    ),
    Column(
        "likelihood",
        "`sg.loglikelihood` under plans equals a plain forward under hooks",
        ("test_loglikelihoods_are_those_of_a_forward_by_hand",),
    ),
    Column(
        "batches",
        "padded batches and many plans at once equal one row at a time",
        ("test_padded_batches_are_their_rows", "test_many_plans_at_once_are_one_at_a_time"),
    ),
    Column(
        "forks",
        "a prompt read once is gone on from many times; nothing is left for the next run",
        ("test_a_fork_goes_on_as_one_forward_would", "test_nothing_of_a_run_is_left_for_the_next"),
    ),
    Column(
        "beams", "beams equal those of a model without a cache", ("test_beams_move_all_that_is_remembered",), ("beams",)
    ),
    Column(
        "bf16",
        "untouched bit for bit in bfloat16, and generation runs; in fp32 fast scans are, to float noise, those that "
        "equal transformers' own",
        ("test_bfloat16", "test_fast_scans_are_the_audited_ones"),
    ),
)


@dataclass
class Found:
    """What the suite asserted, by family.

    Attributes:
        passed: every contract that passed, with the rest of its parameters.
        refused: those that passed by being refused, with the reason.
        gaps: what was measured on the way.
    """

    passed: dict[str, set[tuple[str, str]]] = field(default_factory=lambda: defaultdict(set))
    refused: dict[str, dict[tuple[str, str], str]] = field(default_factory=lambda: defaultdict(dict))
    gaps: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what a test said of a family."""
        name, _, parameters = report.nodeid.rpartition("::")[2].rstrip("]").partition("[")
        family, _, rest = parameters.partition("-")
        if report.when != "call" or not report.passed:
            return
        self.passed[family].add((name, rest))
        for what, value in report.user_properties:
            if what == "refused":
                self.refused[family][name, rest] = str(value)
            elif isinstance(value, tuple):
                self.gaps[family][value[0]] = value[1]

    def cell(self, family: str, column: Column) -> str:
        """What stands in a family's row: ``yes``, ``no``, that there are no such layers, or the channels that work."""
        own = {key for key in self.passed[family] if key[0] in column.tests}
        if not own:
            raise KeyError(f"no test of the column {column.title!r} passed on {family!r}")
        asked = {key for key in own if key[1]} or own
        reasons = [self.refused[family][key] for key in asked if key in self.refused[family]]
        if not reasons:
            return YES
        if works := sorted(channel for _, channel in asked - self.refused[family].keys() if channel):
            return ", ".join(works)
        return NONE if all(reason.startswith(NO_LAYERS) for reason in reasons) else NO

    def reasons(self, family: str, column: Column) -> list[str]:
        """Why something of a column cannot be, but for a lack of layers."""
        own = [
            (key[1], reason)
            for key, reason in self.refused[family].items()
            if key[0] in column.tests and not reason.startswith(NO_LAYERS)
        ]
        return sorted({f"{part}, as {reason}" if part else reason for part, reason in own})
