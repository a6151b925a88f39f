"""A hybrid under a plan, as lm-eval sees a model.

Texts become tokens as in lm-eval's model ``hf``, and the scores under the empty plan are those of ``hf`` up to float
noise. What ``hf`` would truncate, and what a plan would silently leave as it is, is refused.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from lm_eval import __version__ as lm_eval_version
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook, TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import simple_parse_args_string
from tqdm import tqdm

from segregation.errors import ModelError, PlanError, SampleError
from segregation.harness.arguments import Arguments
from segregation.interventions.phase import Phase
from segregation.interventions.recurrent_rules import PatchState
from segregation.interventions.resolve import spans_of_rule
from segregation.interventions.rules import Plan
from segregation.models.hybrid import HybridModel
from segregation.models.provenance import versions
from segregation.runs.generate import described, whole_plan
from segregation.runs.launch import Row
from segregation.runs.loglikelihood import score_rows
from segregation.runs.until import Ending, write_rows

MAX_GEN_TOKS = 256
"""New tokens of a request that names no number, as in lm-eval's model ``hf``."""
SAMPLING_ONLY = {"top_p", "top_k", "min_p", "typical_p", "temperature"}
"""Settings of generation that greedy decoding does not read."""

Tokens = tuple[int, ...]
Request = tuple[tuple[str, str], list[int], list[int]]
log = logging.getLogger(__name__)


@register_model("segregation")
class SegregationLM(TemplateLM):
    """Log-likelihoods and greedy text for lm-eval's requests; lm-eval makes one from ``--model_args``.

    A rule acts by position, as everywhere: a request's context is the prompt, the last token of which is ``LAST`` and
    scores the first token of the continuation; the continuation's tokens but the last, or the new tokens, are
    ``DECODE``. For rolling log-likelihoods the prompt is the prefix token alone.

    >>> from lm_eval.api.instance import Instance
    >>> lm = SegregationLM.create_from_arg_string("pretrained=tiny-jamba")
    >>> ask = Instance("loglikelihood", {}, ("The best thing to do in San Francisco is", " eat"), 0)
    >>> [(score, is_greedy)] = lm.loglikelihood([ask])
    >>> score < 0
    True

    Raises:
        PlanError: a plan that is impossible on this model or names spans of a ``Sample``, which requests are not.
        ModelError: a tokenizer without EOS.
    """

    def __init__(
        self,
        model: HybridModel,
        plan: Plan = Plan(),  # noqa: B008 (a frozen value)
        *,
        batch_size: int = 1,
        add_bos_token: bool | None = None,
    ) -> None:
        super().__init__()
        self.acted = whole_plan(model, plan)
        for rule in self.acted.rules:
            if isinstance(rule, PatchState):
                raise PlanError(
                    f"{rule} goes by sample ids, which requests of lm-eval do not have; use sg.loglikelihood"
                )
            if named := spans_of_rule(rule):
                raise PlanError(
                    f"{rule} names the span {named[0]!r} of a sample, and requests of lm-eval have no such spans; "
                    'use "prompt" (the context), "new" or "everything", or score the samples with segregation itself'
                )
        model.intervene(plan)  # refuses what is impossible on this model before anything runs
        if getattr(model.tokenizer, "eos_token_id", None) is None:
            raise ModelError("lm-eval ends generated text at the tokenizer's EOS, and this tokenizer has none; set it")
        self.model, self.plan, self.batch_size, self.add_bos_token = model, plan, batch_size, add_bos_token
        self.tokenizer: Any = model.tokenizer

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> "SegregationLM":
        """The model that ``--model_args`` describe; lm-eval's own flags come in ``additional_config``.

        Raises:
            ModelError: an argument or a value that is not known, or a model that cannot be loaded.
            PlanError: a file without a plan, or a plan that is impossible on the model.
        """
        flags = {name: value for name, value in (additional_config or {}).items() if value is not None}
        asked = Arguments.of({**arg_dict, **flags})
        return cls(asked.load(), asked.plan, batch_size=asked.batch_size, add_bos_token=asked.add_bos_token)

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: Mapping[str, Any] | None = None
    ) -> "SegregationLM":
        """The same from ``"pretrained=tiny-jamba,plan=plan.json"``."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    # -- tokens, as in lm-eval's model hf --------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before a text without context: the tokenizer's BOS, or its EOS if it has none."""
        return self.tokenizer.eos_token_id if self.tokenizer.bos_token_id is None else self.tokenizer.bos_token_id

    @property
    def max_length(self) -> int | None:
        """Positions that the model takes; ``None`` is any number."""
        return self.model.max_positions

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval's cache of rendered prompts calls the tokenizer."""
        return self.tokenizer.name_or_path.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids of a text; a BOS that stands in the text already is not put before it again."""
        if add_special_tokens is None:
            add_special_tokens = self.add_bos_token
            if has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id)):
                add_special_tokens = False
        special = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return self.tokenizer.encode(string, **special, **kwargs)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as the model was trained to read it; without its system turn where the template refuses it.

        Raises:
            SampleError: a tokenizer without a chat template.
        """
        if self.tokenizer.chat_template is None:
            raise SampleError(
                f"the tokenizer of {self.model.description.get('name', 'this model')} has no chat template; "
                "leave --apply_chat_template out"
            )
        turns = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
        try:
            return self.tokenizer.apply_chat_template(chat_history, tokenize=False, **turns)
        except TemplateError as error:
            log.warning("The chat template refuses the conversation (%s); its system turn is left out.", error)
            spoken = [turn for turn in chat_history if turn["role"] != "system"]
            return self.tokenizer.apply_chat_template(spoken, tokenize=False, **turns)

    # -- requests --------------------------------------------------------------------------------------------------

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Per request (context, continuation): its log-likelihood, and whether greedy decoding would write it.

        Raises:
            SampleError: a continuation without tokens, or one that does not fit with its context.
            PlanError: a rule that has no position to act on in one of the requests.
        """
        for context, continuation in map(_arguments, requests):
            if not continuation:
                raise SampleError(f"the continuation of {_shown(context)} is empty; give it some text")
        return super().loglikelihood(list(requests), disable_tqdm)

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Per request (text): the log-likelihood of all of its tokens after the prefix token, in one window.

        Raises:
            SampleError: a text that is longer than the model's positions.
            PlanError: a rule that has no position to act on in one of the requests.
        """
        texts = [text for (text,) in map(_arguments, requests)]
        encoded = [self.tok_encode(text) for text in texts]
        asked = [(("", text), [self.prefix_token_id], ids) for text, ids in zip(texts, encoded, strict=True) if ids]
        found = iter(self._loglikelihood_tokens(asked, disable_tqdm))
        return [next(found)[0] if ids else 0.0 for ids in encoded]  # a text without tokens: the empty sum

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        for (context, continuation), prompt, scored in requests:
            what = f"scoring {_shown(continuation)} after {_shown(context)}"
            self._check(what, len(prompt), len(scored) - 1, len(scored) - 1)
        order = sorted(range(len(requests)), key=lambda i: (-len(requests[i][1]), requests[i][1], -len(requests[i][2])))
        rows = [Row(index, tuple(requests[index][1]), self.plan) for index in order]
        continuations = [tuple(scored) for _, _, scored in requests]
        found: dict[int, tuple[float, bool]] = {}
        with tqdm(total=len(rows), disable=disable_tqdm, desc="Running loglikelihood requests") as bar:
            for one in score_rows(self.model, rows, continuations, self.batch_size):
                found[one.row.index] = one.loglikelihood, one.greedy
                bar.update()
        return [found[index] for index in range(len(requests))]

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Per request (context, settings): the text that greedy decoding writes, up to the first stop.

        Raises:
            ModelError: settings that are not greedy decoding.
            SampleError: a context that does not fit with its new tokens.
            PlanError: a rule that has no position to act on in one of the requests.
        """
        wanted = [self._wanted(*_arguments(request)) for request in requests]
        order = sorted(range(len(wanted)), key=lambda index: -len(wanted[index][0]))
        rows = [Row(index, wanted[index][0], self.plan) for index in order]
        endings, texts = [ending for _, ending in wanted], [""] * len(rows)
        with tqdm(total=len(rows), disable=disable_tqdm, desc="Running generate_until requests") as bar:
            for one in write_rows(self.model, rows, endings, self.batch_size):
                text = self.tokenizer.decode(list(one.tokens), skip_special_tokens=True)
                texts[one.row.index] = postprocess_generated_text(text, list(endings[one.row.index].stops), None)
                bar.update()
        return texts

    def _wanted(self, context: str, gen_kwargs: Mapping[str, Any]) -> tuple[Tokens, Ending]:
        """The prompt of a request for text, and where its answer ends."""
        settings: dict[str, Any] = dict(normalize_gen_kwargs(dict(gen_kwargs), MAX_GEN_TOKS))
        limit, until = settings.pop("max_gen_toks"), settings.pop("until")
        if settings.pop("do_sample"):
            raise ModelError(
                f"generation is greedy here, got {dict(gen_kwargs)} (a temperature above 0 means sampling too); "
                "pass --gen_kwargs do_sample=False,temperature=0"
            )
        neutral = {name for name in settings if name in SAMPLING_ONLY or (name, settings[name]) == ("num_beams", 1)}
        if unknown := sorted(set(settings) - neutral):
            raise ModelError(
                f"generation is greedy here, and reads until and max_gen_toks; got {unknown[0]}="
                f"{settings[unknown[0]]!r}, which would change it. Leave it out of the task's generation_kwargs"
            )
        what, prompt = f"generating after {_shown(context)}", tuple(self.tok_encode(context))
        if limit < 1:
            raise ModelError(f"{what}: max_gen_toks must be at least 1, got {limit}")
        self._check(what, len(prompt), limit, limit - 1)
        return prompt, Ending(limit, tuple(handle_stop_sequences(until, self.tokenizer.decode(self.eot_token_id))))

    def _check(self, what: str, prompt_tokens: int, new_tokens: int, decode_positions: int) -> None:
        if prompt_tokens < 1 or decode_positions < 0:
            raise SampleError(f"{what}: context and continuation need a token each, got none; give them some text")
        try:
            self.model.check_length(prompt_tokens, new_tokens)
        except ModelError as error:
            raise SampleError(f"{what}: {error} (lm-eval's hf would truncate it)") from error
        none = Phase(0)
        there = (
            Phase.LAST | (Phase.PREFILL if prompt_tokens > 1 else none) | (Phase.DECODE if decode_positions else none)
        )
        for rule in self.acted.rules:
            if not rule.during & there:
                raise PlanError(
                    f"{rule} would do nothing in {what}, where all positions are {there}: a context of one token "
                    "has no PREFILL, one new token no DECODE. Let it act on LAST too, or leave the task out"
                )

    # -- what lm-eval keeps ----------------------------------------------------------------------------------------

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Refuse lm-eval's cache of answers.

        Raises:
            PlanError: there is one. It knows requests by their text alone.
        """
        if cache_hook.dbdict is not None:
            raise PlanError(
                "--use_cache would serve the answers of one plan (or model) to another, since lm-eval knows cached "
                "answers by the text of the request alone; leave --use_cache out (--cache_requests is safe)"
            )
        super().set_cache_hook(cache_hook)

    def get_model_info(self) -> dict[str, Any]:
        """What the ``config`` of lm-eval's results says about the model, the plan and the versions."""
        about = described(self.model, self.batch_size)
        return {
            "plan": json.loads(self.acted.to_json()),
            "plan_hash": self.acted.hash,
            "segregation_model": about["model"],
            "segregation_provenance": about["provenance"],
            "segregation_versions": {**versions(), "lm-eval": lm_eval_version},
            "add_bos_token": self.add_bos_token,
        }


def _arguments(request: Instance) -> tuple[Any, ...]:
    return request.args


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:28]} ... {text[-27:]}")
