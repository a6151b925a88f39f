import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jaxtyping
import pytest
import torch
from torch import Tensor

from segregation.errors import PlanError, RecordError
from segregation.interventions.phase import Phase
from segregation.interventions.rules import AblateHeads, AblateMixer, KeepTopHeads, Plan
from segregation.interventions.token_rules import HideAll, HideTokens
from segregation.models.hybrid import HybridModel
from segregation.prompts.sample import Sample
from segregation.runs import capture as capturing
from segregation.runs import fitting
from segregation.runs.capture import capture
from segregation.runs.capture_request import CaptureRequest, estimate_bytes
from segregation.runs.capture_store import captures, read_capture
from segregation.runs.generate import generate
from segregation.runs.launch import Row
from segregation.runs.recorder import Recorder
from segregation.runs.store import read_records

NEW = 6
EVERYTHING = CaptureRequest(("pattern", "z", "kept", "entropy"), during=Phase.ALL)
PLANS = [
    Plan(),
    Plan(KeepTopHeads(2, during=Phase.GENERATION)),
    Plan(HideTokens("prompt", during=Phase.DECODE)),
    Plan(KeepTopHeads(1, during=Phase.PREFILL), HideTokens("needle", during=Phase.LAST)),
]
PREFILL, LAST, DECODE = range(3)


@pytest.fixture(scope="module")
def needles(samples: list[Sample]) -> list[Sample]:
    return [
        Sample(id=s.id, prompt=s.prompt, target=s.target, spans={"needle": ((0, max(1, len(s.prompt) // 4)),)})
        for s in samples
    ]


@contextmanager
def ends(model: HybridModel, *tokens: int) -> Iterator[None]:
    config = model.hf_model.generation_config
    before, config.eos_token_id = config.eos_token_id, list(tokens)
    try:
        yield
    finally:
        config.eos_token_id = before


@pytest.fixture(scope="module")
def folder(model: HybridModel, needles: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything of every sample under every plan, in padded batches of mixed lengths; no row ends early."""
    with ends(model), pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "PADDING", float("inf"))
        return capture(
            model, needles, PLANS, EVERYTHING, folder=tmp_path_factory.mktemp("runs") / "all", max_new_tokens=NEW
        )


def of(folder: Path, sample: Sample, plan: Plan) -> dict[str, Tensor]:
    (key,) = [r.key for r, _ in captures(folder) if (r.sample_id, r.plan_hash) == (sample.id, plan.hash)]
    return read_capture(folder, key)


def one_forward(model: HybridModel, ids: Tensor) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Weights and inputs of the output projection of one eager forward of the plain module, by PyTorch hooks."""
    weights, zs = {}, {}

    def keep(layer: int):
        return [
            model.attention(layer)._module.register_forward_hook(lambda *a: weights.update({layer: a[2][1][0]})),
            model.out_proj(layer)._module.register_forward_pre_hook(
                lambda *a: zs.update({layer: a[1][0][0].unflatten(-1, (model.n_heads, -1))})
            ),
        ]

    model.hf_model.set_attn_implementation("eager")
    handles = [handle for layer in model.attention_layers for handle in keep(layer)]
    try:
        model.reset()
        with torch.no_grad():
            model._module(ids[None])
    finally:
        model.hf_model.set_attn_implementation("sdpa")
        for handle in handles:
            handle.remove()
    return weights, zs


def test_pattern_and_z_are_those_of_one_eager_forward(model, needles, folder):
    for sample in needles:
        got = of(folder, sample, Plan())
        weights, zs = one_forward(model, got["tokens"])
        n = len(model.encode(sample)) + NEW - 1
        assert got["positions"].tolist() == list(range(n)) and len(got["tokens"]) == n
        for layer in model.attention_layers:
            assert got[f"pattern.layer{layer}"].shape == (4, n, n)
            torch.testing.assert_close(got[f"pattern.layer{layer}"], weights[layer].float(), atol=2e-5, rtol=0)
            torch.testing.assert_close(got[f"z.layer{layer}"], zs[layer], atol=5e-5, rtol=0)


def test_records_are_those_of_generate_and_join_the_index(model, needles, folder):
    with ends(model):
        expected = list(generate(model, needles, PLANS, max_new_tokens=NEW))
    joined = list(captures(folder))
    assert {r.key: r for r in read_records(folder)} == {r.key: r for r in expected}
    assert [record for record, _ in joined] == read_records(folder)
    for record, captured in joined:
        assert (captured.key, captured.sample_id, captured.plan_hash) == (
            record.key,
            record.sample_id,
            record.plan_hash,
        )
        tensors = read_capture(folder, record.key)
        assert tensors["tokens"][record.prompt_tokens :].tolist() == list(record.tokens[:-1])
        assert captured.bytes == sum(tensor.nbytes for tensor in tensors.values())
        assert "".join(captured.new_tokens).count("�") or "".join(captured.new_tokens) == record.text
        assert captured.heads == dict.fromkeys(model.attention_layers, (0, 1, 2, 3))
        assert captured.spans["needle"][0][0] == 1  # after <bos>


def test_entropy_is_that_of_the_pattern(model, needles, folder):
    got = of(folder, needles[1], PLANS[3])
    for layer in model.attention_layers:
        for head, rows in enumerate(got[f"pattern.layer{layer}"].tolist()):
            by_hand = [-sum(p * math.log(p) for p in row if p > 0) for row in rows]
            assert got[f"entropy.layer{layer}"][head].tolist() == pytest.approx(by_hand, abs=2e-6)


def test_hidden_keys_have_no_weight_and_the_others_have_theirs(model, needles, folder):
    for sample in needles:
        hidden, base = of(folder, sample, PLANS[2]), of(folder, sample, Plan())
        prompt = len(model.encode(sample))
        for layer in model.attention_layers:
            decoded = hidden[f"pattern.layer{layer}"][:, prompt:]
            assert decoded[..., :prompt].eq(0).all()
            torch.testing.assert_close(decoded.sum(-1), torch.ones(4, NEW - 1))
        first = f"pattern.layer{model.attention_layers[0]}"
        torch.testing.assert_close(hidden[first][:, :prompt], base[first][:, :prompt], atol=1e-6, rtol=0)
        untouched = base[first][:, prompt, prompt:]  # its token is the same, since LAST is not edited
        torch.testing.assert_close(hidden[first][:, prompt, prompt:], untouched / untouched.sum(-1, keepdim=True))


def test_kept_heads_are_the_best_by_the_captured_pattern(model, needles, folder):
    for sample in needles:
        got, last = of(folder, sample, PLANS[1]), len(model.encode(sample)) - 1
        for layer in model.attention_layers:
            scores = torch.special.entr(got[f"pattern.layer{layer}"]).sum(-1)
            kept = got[f"kept.layer{layer}"]
            assert kept[:last].all()
            for dest in range(last, last + NEW):
                best = sorted(range(4), key=lambda head, at=dest: scores[head, at].item())[:2]
                assert kept[dest].nonzero().flatten().tolist() == sorted(best)
            assert torch.equal(got[f"z.layer{layer}"].ne(0).any(-1), kept)


def test_no_head_acts_where_its_mixer_or_all_it_sees_is_gone(model, needles, tmp_path):
    plans = [
        Plan(AblateMixer(during=Phase.LAST)),
        Plan(HideAll(during=Phase.LAST)),
        Plan(AblateHeads(during=Phase.LAST)),
    ]
    request = CaptureRequest(("kept",), during=Phase.GENERATION)
    path = capture(model, needles[:1], plans, request, folder=tmp_path / "run", max_new_tokens=3)
    for plan in plans:
        got = of(path, needles[0], plan)
        for layer in model.attention_layers:
            assert got[f"kept.layer{layer}"].all(-1).tolist() == [False, True, True]
            assert not got[f"kept.layer{layer}"][0].any()


@pytest.mark.parametrize("steps", ["all", "first", "last"])
@pytest.mark.parametrize("during", [Phase.PREFILL, Phase.LAST, Phase.DECODE, Phase.GENERATION, Phase.ALL])
def test_a_request_selects_the_positions_of_everything(model, needles, folder, tmp_path, during, steps):
    layer = model.attention_layers[1]
    heads = ((layer, 1), (layer, 3))
    request = CaptureRequest(EVERYTHING.what, heads=heads, during=during, steps=steps)
    chosen = [needles[3], needles[1]]  # of 2 tokens, and beyond the window
    with ends(model):
        path = capture(model, chosen, PLANS[1], request, folder=tmp_path / "run", max_new_tokens=NEW)
    for sample in chosen:
        whole, got = of(folder, sample, PLANS[1]), of(path, sample, PLANS[1])
        prompt = len(model.encode(sample))
        wanted = []
        for phase, span in zip(
            (Phase.PREFILL, Phase.LAST, Phase.DECODE),
            (range(prompt - 1), range(prompt - 1, prompt), range(prompt, prompt + NEW - 1)),
            strict=True,
        ):
            if phase in during:
                wanted += {"all": list(span), "first": list(span)[:1], "last": list(span)[-1:]}[steps]
        assert got["positions"].tolist() == wanted
        assert got["phases"].tolist() == [(p >= prompt - 1) + (p >= prompt) for p in wanted]
        sources = len(got["tokens"])
        assert sources == max(wanted[-1] + 1, prompt - 1 if Phase.PREFILL in during else 0)
        assert torch.equal(got["tokens"], whole["tokens"][:sources])
        assert {name for name in got if "." in name} == {f"{what}.layer{layer}" for what in EVERYTHING.what}
        close = {"atol": 2e-5, "rtol": 0}
        expected = whole[f"pattern.layer{layer}"][[1, 3]][:, wanted, :sources]
        torch.testing.assert_close(got[f"pattern.layer{layer}"], expected, **close)
        torch.testing.assert_close(
            got[f"z.layer{layer}"], whole[f"z.layer{layer}"][wanted][:, [1, 3]], atol=5e-5, rtol=0
        )
        torch.testing.assert_close(
            got[f"entropy.layer{layer}"], whole[f"entropy.layer{layer}"][[1, 3]][:, wanted], **close
        )
        assert torch.equal(got[f"kept.layer{layer}"], whole[f"kept.layer{layer}"][wanted][:, [1, 3]])


def test_rows_that_end_early_are_those_of_one_by_one(model, needles, folder, tmp_path):
    third = {r.sample_id: r.tokens[2] for r, _ in captures(folder) if r.plan_hash == PLANS[2].hash}
    runs = {}
    for size in (1, 7):
        with ends(model, third[needles[1].id]):
            runs[size] = capture(
                model,
                needles,
                PLANS[2:],
                EVERYTHING,
                folder=tmp_path / f"{size}",
                max_new_tokens=NEW,
                batch_size=size,
            )
    lengths = set()
    for record, _ in captures(runs[1]):
        alone, batched = (read_capture(path, record.key) for path in runs.values())
        assert alone.keys() == batched.keys()
        assert len(alone["positions"]) == record.prompt_tokens + len(record.tokens) - 1
        lengths.add(len(record.tokens))
        for name, tensor in alone.items():
            torch.testing.assert_close(tensor, batched[name], atol=5e-5, rtol=0)
    assert len(lengths) > 1


def test_what_was_read_does_not_change_afterwards(model, needles):
    layer = model.attention_layers[0]
    row = Row(0, tuple(model.encode(needles[1])), Plan())
    recorder = Recorder(model, CaptureRequest(("pattern", "z"), during=Phase.ALL), 1)
    reading = recorder.watch([row]).enter(model)
    with torch.no_grad(), reading.trace(needles[1]):
        model.z(layer)[:] = 0
    _, zs = one_forward(model, torch.tensor(row.prompt))
    got = recorder.take(row, [])
    torch.testing.assert_close(got[f"z.layer{layer}"], zs[layer], atol=5e-5, rtol=0)
    assert not torch.allclose(got[f"z.layer{model.attention_layers[1]}"], zs[model.attention_layers[1]])


def test_reading_changes_no_logit(model, needles):
    recorder = Recorder(model, EVERYTHING, 1)
    row = Row(0, tuple(model.encode(needles[1])), Plan())
    with torch.no_grad():
        read = recorder.watch([row]).enter(model).trace(needles[1], trace=False).logits
        assert torch.equal(read, model.trace(needles[1], trace=False).logits)


def test_a_capture_goes_on_where_it_was_killed(model, needles, tmp_path, monkeypatch):
    path = tmp_path / "run"
    request = CaptureRequest(("entropy",))
    capture(model, needles[:2], PLANS[:2], request, folder=path, max_new_tokens=3)
    before = {record.key: read_capture(path, record.key) for record, _ in captures(path)}
    lines = (path / "records.jsonl").read_text().splitlines(keepends=True)
    lost = json.loads(lines[-1])["key"]
    (path / "records.jsonl").write_text("".join(lines[:-1]))  # killed between the index and the record ...
    with (path / "index.jsonl").open("a") as index:
        index.write('{"key": "generate:')  # ... and another time within a line
    assert lost not in {record.key for record, _ in captures(path)}
    made = []
    generate_rows = capturing.generate_rows
    monkeypatch.setattr(
        capturing, "generate_rows", lambda m, s, rows, *a: (made.extend(rows), generate_rows(m, s, rows, *a))[1]
    )
    assert capture(model, needles[:3], PLANS[:2], request, folder=path, max_new_tokens=3) == path
    assert len(made) == 1 + 2
    assert len(list(captures(path))) == len(read_records(path)) == 6
    for key, tensors in before.items():
        again = read_capture(path, key)
        for name, tensor in tensors.items():
            torch.testing.assert_close(tensor, again[name], atol=5e-5 if key == lost else 0, rtol=0)
    made.clear()
    capture(model, needles[:3], PLANS[:2], request, folder=path, max_new_tokens=3)
    assert not made
    with pytest.raises(RecordError, match=r"belongs to another run: options\.what"):
        capture(model, needles[:3], PLANS[:2], CaptureRequest(), folder=path, max_new_tokens=3)


@pytest.mark.parametrize(
    "request_",
    [
        EVERYTHING,
        CaptureRequest(("pattern",), steps="last"),
        CaptureRequest(("z", "kept"), during=Phase.PREFILL),
        CaptureRequest(("pattern",), during=Phase.PREFILL, steps="first"),
    ],
)
def test_the_estimate_is_what_the_files_hold(model, needles, tmp_path, request_):
    wanted = estimate_bytes(model, needles, PLANS[:2], request_, max_new_tokens=NEW)
    with ends(model):
        path = capture(
            model, needles, PLANS[:2], request_, folder=tmp_path / "run", max_new_tokens=NEW, max_bytes=wanted
        )
        with pytest.raises(
            PlanError, match=f"would take {wanted:,} bytes, and max_bytes is {wanted - 1:,}; the tensors"
        ):
            capture(
                model, needles, PLANS[:2], request_, folder=tmp_path / "no", max_new_tokens=NEW, max_bytes=wanted - 1
            )
    assert not (tmp_path / "no").exists()
    assert sum(captured.bytes for _, captured in captures(path)) == wanted
    payload = 0
    for _, captured in captures(path):
        content = (path / captured.file).read_bytes()
        payload += len(content) - 8 - int.from_bytes(content[:8], "little")  # without safetensors' header
    assert payload == wanted


def test_the_remedy_is_for_what_costs_most(model, needles, tmp_path):
    with pytest.raises(
        PlanError, match=r"the tensors 'pattern' take .* Ask for .*steps=\"last\".*what=\(\"entropy\",\)"
    ):
        capture(model, needles, PLANS, EVERYTHING, folder=tmp_path / "run", max_bytes=10_000)
    with pytest.raises(PlanError, match=r"the tensors 'z' take .*; or raise max_bytes"):
        capture(model, needles, PLANS, CaptureRequest(("z",)), folder=tmp_path / "run", max_bytes=10_000)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"what": ()}, r"what must name one or more of .*'entropy'\), got \(\)"),
        ({"what": "z"}, r"got 'z'; for one, write \(\"pattern\",\)"),
        ({"what": ("pattern", "logits")}, "got .*'logits'"),
        ({"steps": "middle"}, "steps must be one of"),
        ({"during": Phase(0)}, "non-empty Phase"),
        ({"layers": ()}, "layers must name layers"),
        ({"heads": ()}, "heads is empty"),
        ({"heads": ((1, -1),)}, "counted from 0"),
        ({"layers": (1,), "heads": ((1, 1),)}, "name their layers themselves"),
    ],
)
def test_requests_that_mean_nothing(fields, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for users, whose types nobody checks
    with pytest.raises(PlanError, match=message):
        CaptureRequest(**fields)


def test_requests_that_this_model_or_folder_cannot_meet(model, needles, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(
        PlanError, match=r"CaptureRequest: layer must be an attention layer .*got 0, which is a recurrent"
    ):
        capture(model, needles, Plan(), CaptureRequest(layers=(0,)), folder=run)
    with pytest.raises(PlanError, match=r"head must be in 0\.\.3 .*got head 9"):
        capture(model, needles, Plan(), CaptureRequest(heads=((model.attention_layers[0], 9),)), folder=run)
    with pytest.raises(RecordError, match="starts from an untouched model"):
        capture(model.intervene(PLANS[0]), needles, Plan(), folder=run, max_new_tokens=2)
    model.hf_model.config._attn_implementation = "flash_attention_2"
    try:
        with pytest.raises(PlanError, match="CaptureRequest of patterns or entropies needs to know"):
            capture(model, needles, Plan(), folder=run)
    finally:
        model.hf_model.config._attn_implementation = "sdpa"
    assert not run.exists()


def test_captures_that_cannot_be_read(model, needles, folder, tmp_path):
    with pytest.raises(RecordError, match=r"it has no index\.jsonl; name a folder that capture\(\) filled"):
        read_capture(tmp_path, "key")
    with pytest.raises(RecordError, match=r"has no capture under the key 'key'"):
        read_capture(folder, "key")
    path = capture(model, needles[:2], Plan(), CaptureRequest(("kept",)), folder=tmp_path / "run", max_new_tokens=2)
    (one, first), (two, second) = captures(path)
    (path / first.file).write_bytes((path / second.file).read_bytes())
    with pytest.raises(RecordError, match="is not what the index says"):
        read_capture(path, one.key)
    (path / second.file).write_bytes(b"nothing")
    with pytest.raises(RecordError, match="cannot be read"):
        read_capture(path, two.key)
    with (path / "index.jsonl").open("a") as index:
        index.write('{"key": 1}\n')
    with pytest.raises(RecordError, match=r"index\.jsonl, line 3: not a line of an index of captures"):
        list(captures(path))
