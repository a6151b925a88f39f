"""Real sizes, tiny: what is built and shared, what is compared, and what a table says of it."""

import itertools
import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks import real_sizes
from benchmarks.published import PUBLISHED, build, untouched, word_tokenizer
from benchmarks.real_sizes import WAYS, Output, compare, measure, rounds, with_functions
from benchmarks.real_sizes_records import Built, Compared, Failed, Timed, append, read, table

SIZES = {
    "google/recurrentgemma-2b": 2.68,
    "google/recurrentgemma-9b": 8.58,
    "ai21labs/AI21-Jamba-Mini-1.6": 51.57,
    "ibm-ai-platform/Bamba-9B": 9.78,
}
"""Parameters in 10^9, as published: 2.7, 8.6, 52 and 9.78."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_has_the_published_size(name: str) -> None:
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(PUBLISHED[name].config(**PUBLISHED[name].fields))
    assert module.num_parameters() / 1e9 == pytest.approx(SIZES[name], abs=0.005)


def test_untouched_modules_share_every_tensor_and_nothing_else() -> None:
    published = PUBLISHED["google/recurrentgemma-2b"]
    module = build(published.config(**{**published.fields, **published.tiny}), "cpu")
    twin = untouched(module)
    assert {tensor.dtype for tensor in module.parameters()} == {torch.bfloat16}
    assert all(one is two for one, two in zip(module.parameters(), twin.parameters(), strict=True))
    assert not set(module.modules()) & set(twin.modules())
    buffers = dict(module.named_buffers())
    assert buffers["model.layers.2.temporal_block.rotary_emb.inv_freq"].dtype == torch.float32


def test_every_token_id_is_a_word() -> None:
    published = PUBLISHED["ibm-ai-platform/Bamba-9B"]
    config = published.config(**{**published.fields, **published.tiny})
    tokenizer = word_tokenizer(config)
    assert tokenizer("<7> <511> <8>")["input_ids"] == [config.bos_token_id, 7, 511, 8]


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_ways_agree_where_no_head_is_ablated(name: str, tmp_path: Path) -> None:
    for result in measure(name, smoke=True, tokens=40, new_tokens=4, repeats=2):
        append(tmp_path, result)
    results = read(tmp_path)
    (built,) = [result for result in results if isinstance(result, Built)]
    assert "pass" in {check["outcome"] for check in built.checks}
    assert not [check for check in built.checks if check["outcome"] == "fail"]
    compared = {result.way: result for result in results if isinstance(result, Compared)}
    assert list(compared) == [way.name for way in WAYS]
    assert {result.prompt_tokens for result in compared.values()} == {40}
    base = compared["base"]
    assert base.same_tokens == 4 and base.logit_change is not None and base.logit_change <= 0.05  # other forms of scans
    for way in ("k = 5, generation", "k = 5, all positions", "full ablation"):
        assert (compared[way].logit_change or 0) > 0
    assert compared["k = 5, generation"].logit_change != compared["full ablation"].logit_change
    assert any("modeling_" in function for function in compared["plain generate"].functions)
    timed = [(result.way, result.round) for result in results if isinstance(result, Timed)]
    assert timed == [(way.name, number) for number in range(2) for way in WAYS]


def test_logits_are_compared_while_the_same_tokens_were_read() -> None:
    one = Output((5, 6, 7), torch.tensor([[0.0], [1.0], [2.0]]))
    assert compare(one, Output((5, 9, 7), torch.tensor([[0.0], [1.5], [9.0]]))) == (1, 0.5)
    assert compare(one, Output((5, 6, 7), None)) == (3, None)


def test_the_functions_of_a_run_are_named() -> None:
    def selective_scan_fn() -> Output:
        return Output((), None)

    output, functions = with_functions(selective_scan_fn)
    assert output.tokens == ()
    assert functions == [f"{__name__}.selective_scan_fn"]
    assert sys.getprofile() is None


def test_a_round_that_would_end_late_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(step=10)  # ten seconds whenever anyone looks
    monkeypatch.setattr(real_sizes.time, "perf_counter", lambda: float(next(clock)))
    run = {WAYS[0]: lambda: Output((), None)}
    # 40 s are spent when a second round is thought of, so both would take 80 s
    assert [timed.round for timed in rounds("m", run, repeats=5, seconds=79)] == [0]
    assert [timed.round for timed in rounds("m", run, repeats=2, seconds=80)] == [0, 1]


def test_the_table_takes_ratios_round_by_round_and_tells_what_failed(tmp_path: Path) -> None:
    checks = [{"name": "no leak", "outcome": "fail", "measured": 0.5}, {"name": "x", "outcome": "-", "measured": None}]
    for result in (
        Built("m", 2_680_000_000, 5.36, 1.0, "a GPU", 80.0, {"torch": "2"}, {"attn": "sdpa"}, checks),
        Compared("m", "plain generate", 8, 4, 4, 0.0, ["x.selective_scan_fn"]),
        Compared("m", "base", 8, 4, 3, 0.25, ["y.rg_lru_scan"]),
        *(Timed("m", "plain generate", number, seconds, 6.0) for number, seconds in enumerate((1.0, 10.0, 2.0))),
        *(Timed("m", "base", number, seconds, 6.5 + number) for number, seconds in enumerate((2.0, 30.0, 2.0))),
        Failed("n", "", "it took more than 5 s"),
    ):
        append(tmp_path, result)
    lines = table(read(tmp_path), "plain generate").splitlines()
    assert "| m | 2.68 | 5.4 | base | 8.5 | 2.00 [2.00, 30.00] | 2.00 | no, the first 3 of 4 | 0.25 |" in lines
    assert "n: did not run to its end: it took more than 5 s" in lines
    assert "x.selective_scan_fn, y.rg_lru_scan" in lines[-1]
    assert "no leak: fail (0.5); x: -." in lines[-1]


def test_a_model_whose_process_fails_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "google/recurrentgemma-2b"
    monkeypatch.setattr(real_sizes.sys, "executable", "/bin/false")
    arguments = ["real_sizes", "--smoke", "--models", name, "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    real_sizes.main()
    (line,) = (tmp_path / "records.jsonl").read_text().splitlines()
    assert json.loads(line) == {"record": "Failed", "model": name, "way": "", "reason": "exit status 1: "}
