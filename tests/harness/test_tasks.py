"""Whole tasks of lm-eval, from YAML files, through its evaluator and its command."""

import functools
import json
import math
import sys
from pathlib import Path

import lm_eval
import lm_eval.tasks
import pytest
import torch
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

from segregation.harness import SegregationLM
from segregation.harness.__main__ import main
from segregation.interventions.phase import Phase
from segregation.interventions.rules import AblateHeads, KeepTopHeads, Plan
from segregation.interventions.token_rules import HideAll
from segregation.models.hybrid import HybridModel
from segregation.prompts.sample import Sample
from segregation.runs.generate import generate
from segregation.runs.loglikelihood import loglikelihood
from segregation.scores.choice import choice_accuracy
from tests.conftest import FAMILIES

PLAN = Plan(KeepTopHeads(1, during=Phase.GENERATION))
CHOICES = ["abc", "de", "fgh ij"]
ASKED = [
    {"text": text, "choices": CHOICES, "answer": i % 3} for i, text in enumerate(["abba", "cede", "h", "kij", "ll"])
]

TASKS = {
    "made_up_choice": """
output_type: multiple_choice
doc_to_text: "Q: {{text}} A:"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
""",
    "made_up_text": """
output_type: generate_until
doc_to_text: "Q: {{text}} A:"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 6, do_sample: false}
metric_list: [{metric: exact_match}]
""",
    "made_up_perplexity": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: byte_perplexity}]
""",
}


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with the tasks and their documents."""
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, ASKED)))
    files = {"data_files": {"test": str(tmp_path / "asked.jsonl")}, "cache_dir": str(tmp_path / "cache")}
    for name, rest in TASKS.items():
        head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {json.dumps(files)}\ntest_split: test"
        (tmp_path / f"{name}.yaml").write_text(head + rest)
    return tmp_path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval's command without the index of the thousands of tasks that come with it."""
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", functools.partial(TaskManager, include_defaults=False))


def evaluated(tasks: Path, *names: str, **options):
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    return lm_eval.simple_evaluate(tasks=list(names), task_manager=manager, bootstrap_iters=0, **options)


def samples() -> list[Sample]:
    choices = tuple(f" {choice}" for choice in CHOICES)  # lm-eval's delimiter
    return [
        Sample(id=str(i), prompt=f"Q: {one['text']} A:", target=choices[one["answer"]], choices=choices)
        for i, one in enumerate(ASKED)
    ]


def test_importing_the_package_registers_the_model():
    assert get_model("segregation") is SegregationLM


@functools.cache
def opened(folder: Path) -> HybridModel:
    """One model of a folder for all plans, beside the one that lm-eval opens each time."""
    return SegregationLM.create_from_arg_obj({"pretrained": str(folder)}).model


@pytest.mark.parametrize("plan", [Plan(), PLAN, Plan(HideAll(during=Phase.DECODE))], ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_tasks_see_what_segregation_computes(folders, tasks, name, plan):
    (tasks / "plan.json").write_text(plan.to_json())
    arguments = {"pretrained": str(folders[name]), "plan": str(tasks / "plan.json")}
    found = evaluated(tasks, *TASKS, model="segregation", model_args=arguments, batch_size=3, log_samples=True)
    model = opened(folders[name])

    records = {record.sample_id: record for record in loglikelihood(model, samples(), plan)}
    for one in found["samples"]["made_up_choice"]:
        expected = records[str(one["doc_id"])].loglikelihoods
        assert [float(score) for score, _ in one["filtered_resps"]] == pytest.approx(expected, abs=2e-5)
    scores = [choice_accuracy(record) for record in records.values()]
    result = found["results"]["made_up_choice"]
    assert result["acc,none"] == sum(score.acc for score in scores) / len(scores)
    assert result["acc_norm,none"] == sum(score.acc_norm for score in scores) / len(scores)

    written = {record.sample_id: record.text for record in generate(model, samples(), plan, max_new_tokens=6)}
    for one in found["samples"]["made_up_text"]:
        assert one["filtered_resps"] == [written[str(one["doc_id"])].split("\n")[0]]

    nats = sum(rolled(model, plan, one["text"]) for one in ASKED)
    per_byte = -nats / sum(len(one["text"]) for one in ASKED)
    found_per_byte = found["results"]["made_up_perplexity"]["byte_perplexity,none"]
    assert math.log(found_per_byte) == pytest.approx(per_byte, abs=2e-5)


def rolled(model: HybridModel, plan: Plan, text: str) -> float:
    """ln p of a text, its own <bos> included, after <bos>: position 0 is LAST, the others are DECODE."""
    tokens = torch.tensor([2, *model.encode(text)])
    with torch.no_grad():
        logits = model.intervene(plan).trace(tokens[None], prompt_lengths=[1], trace=False).logits[0]
    return float(logits[:-1].log_softmax(-1).gather(1, tokens[1:, None]).sum())


def test_the_results_say_what_was_run(folders, tasks):
    lm = SegregationLM(opened(folders["jamba"]), PLAN, batch_size=2)
    config = evaluated(tasks, "made_up_choice", model=lm)["config"]
    assert Plan.from_json(json.dumps(config["plan"])) == PLAN and config["plan_hash"] == PLAN.hash
    assert config["segregation_model"]["weights_sha256"] == lm.model.description["weights_sha256"]
    assert config["segregation_model"]["dtype"] == "float32"
    assert config["segregation_provenance"] == {"batch_size": 2, "device": "cpu"}
    assert {"torch", "transformers", "nnsight", "lm-eval"} <= set(config["segregation_versions"])
    json.dumps(config)


def run(monkeypatch: pytest.MonkeyPatch, *args: object) -> int:
    """The exit code of ``segregation-lm-eval`` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["segregation-lm-eval", *map(str, args)])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.usefixtures("quick")
def test_the_command_writes_results(folders, tasks, monkeypatch, capsys):
    (tasks / "plan.json").write_text(PLAN.to_json())
    flags = ["--model", "segregation", "--device", "cpu", "--batch_size", "8", "--output_path", tasks / "out"]
    arguments = f"pretrained={folders['recurrentgemma']},plan={tasks / 'plan.json'},add_bos_token=True"
    assert run(monkeypatch, *flags, "--model_args", arguments, "--tasks", tasks / "made_up_choice.yaml") == 0
    assert "made_up_choice" in capsys.readouterr().out
    [written] = (tasks / "out").rglob("results_*.json")
    config = json.loads(written.read_text())["config"]
    assert (config["plan_hash"], config["add_bos_token"]) == (PLAN.hash, True)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("arguments", "flags", "why"),
    [
        ("pretrained=MODEL,peft=x", [], "got ['peft']"),
        ("pretrained=MODEL,plan=absent.json", [], "'absent.json' cannot be read"),
        ("pretrained=MODEL,plan=TASKS/asked.jsonl", [], "a plan in JSON is"),
        ("pretrained=tiny-nothing", [], "no model 'tiny-nothing'"),
        ("pretrained=MODEL", ["--batch_size", "auto"], "got 'auto'"),
        ("pretrained=MODEL", ["--use_cache", "TASKS/answers"], "--use_cache would serve the answers of one plan"),
        ("pretrained=MODEL", ["--apply_chat_template"], "has no chat template"),
        ("pretrained=MODEL", ["--gen_kwargs", "do_sample=True"], "generation is greedy here"),
    ],
)
def test_refused_input_is_one_line_and_exit_code_2(folders, tasks, monkeypatch, capsys, arguments, flags, why):
    def named(text: str) -> str:
        return text.replace("MODEL", str(folders["jamba"])).replace("TASKS", str(tasks))

    always = ["--model", "segregation", "--tasks", tasks / "made_up_text.yaml", "--device", "cpu"]
    assert run(monkeypatch, *always, "--model_args", named(arguments), *map(named, flags)) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("segregation: ")]
    assert why in line


@pytest.mark.usefixtures("quick")
def test_a_plan_that_a_task_has_no_position_for_is_refused(folders, tasks, monkeypatch, capsys):
    (tasks / "plan.json").write_text(Plan(AblateHeads(during=Phase.PREFILL)).to_json())
    arguments = f"pretrained={folders['jamba']},plan={tasks / 'plan.json'}"
    flags = ["--model", "segregation", "--model_args", arguments, "--device", "cpu"]
    assert run(monkeypatch, *flags, "--tasks", tasks / "made_up_perplexity.yaml") == 2
    assert "during=PREFILL) would do nothing in scoring 'abba'" in capsys.readouterr().err
