import pytest
import torch

from segregation.errors import ModelError, PlanError
from segregation.harness.arguments import Arguments
from segregation.interventions.rules import AblateHeads, Plan


def test_what_is_not_named_is_as_in_load_model():
    asked = Arguments.of({"pretrained": "tiny-jamba", "plan": ""})
    assert (asked.plan, asked.batch_size, asked.add_bos_token) == (Plan(), 1, None)
    assert asked.settings == {"dtype": torch.float32, "device_map": "cpu", "trust_remote_code": False}


def test_what_is_named(tmp_path):
    plan = Plan(AblateHeads())
    (tmp_path / "plan.json").write_text(plan.to_json())
    named = {"plan": str(tmp_path / "plan.json"), "dtype": "bfloat16", "revision": 3, "attn_implementation": "eager"}
    asked = Arguments.of({"pretrained": "a/b", **named, "add_bos_token": False, "batch_size": "12", "device": "meta"})
    assert (asked.pretrained, asked.plan, asked.batch_size, asked.add_bos_token) == ("a/b", plan, 12, False)
    assert asked.settings == {
        "dtype": torch.bfloat16,
        "device_map": "meta",
        "trust_remote_code": False,
        "revision": "3",
        "attn_implementation": "eager",
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="lm-eval's default device is there")
def test_lm_evals_default_device_is_the_cpu_where_there_is_no_other():
    assert Arguments.of({"pretrained": "a/b", "device": "cuda:0"}).settings["device_map"] == "cpu"


@pytest.mark.parametrize(
    ("given", "error", "why"),
    [
        ({"plan": ""}, ModelError, "pretrained=NAME"),
        ({"pretrained": "a/b", "peft": "c"}, ModelError, r"arguments pretrained, plan, .*; got \['peft'\]"),
        ({"pretrained": "a/b", "plan": "absent.json"}, PlanError, "'absent.json' cannot be read"),
        ({"pretrained": "a/b", "batch_size": "auto"}, ModelError, "from 1 on, got 'auto'"),
        ({"pretrained": "a/b", "batch_size": 0}, ModelError, "from 1 on, got 0"),
        ({"pretrained": "a/b", "dtype": "auto"}, ModelError, "dtype is one of float32, bfloat16, float16, got 'auto'"),
        ({"pretrained": "a/b", "add_bos_token": "yes"}, ModelError, "add_bos_token is one of True, False, None"),
        ({"pretrained": "a/b", "trust_remote_code": "no"}, ModelError, "trust_remote_code is one of True, False"),
    ],
)
def test_refusals(given, error, why):
    with pytest.raises(error, match=why):
        Arguments.of(given)


def test_a_model_that_is_not_there():
    with pytest.raises(ModelError, match="no model 'tiny-nothing'"):
        Arguments.of({"pretrained": "tiny-nothing"}).load()
