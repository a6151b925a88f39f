"""What one sample under one plan gave: one JSON line, from which it can be scored later without a model."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from segregation.errors import RecordError
from segregation.prompts.sample import Metadata, Sample

Kind = Literal["generate", "loglikelihood", "measurement"]


def prompt_sha256(prompt: str) -> str:
    """SHA-256 of a prompt's UTF-8 bytes, in hexadecimal.

    >>> prompt_sha256("a prompt")[:12]
    'a98310efb4de'
    """
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()


def record_key(kind: Kind, sample_id: str, plan_hash: str, settings: Metadata) -> str:
    """What makes a record unique in a run: kind, sample, plan, and the settings that change the result.

    >>> record_key("generate", "classic@512", "4f53cda18c2b", {"max_new_tokens": 40})
    'generate:classic@512:4f53cda18c2b:max_new_tokens=40'
    """
    return ":".join([kind, sample_id, plan_hash, *(f"{name}={settings[name]}" for name in sorted(settings))])


@dataclass(frozen=True)
class Record:
    """The outcome of one sample under one plan.

    Attributes:
        kind: whether text was generated, continuations were scored, or something else was measured.
        sample_id: the sample's id.
        prompt_sha256: of the rendered prompt, so that two runs can be shown to have asked the same.
        target: the sample's target.
        plan: the plan, as its canonical JSON.
        plan_hash: the plan's hash.
        prompt_tokens: tokens of the prompt as the model saw it (P of the phases; padding not counted).
        choices: the sample's choices; empty for a generation task.
        metadata: the sample's metadata.
        tokens: generated token ids, up to and including the end of sequence.
        text: those tokens decoded, without special tokens.
        loglikelihoods: summed log-probability in nats of each choice, or of the target where there are no choices.
        token_counts: how many tokens each of those continuations has.
        beyond_window: per span that a rule about tokens names, at how many of the positions it acts on no token of the
            span was left in the attention window, so that there was nothing to edit.
        values: what a measurement gave, by name; empty for the other kinds.
        settings: what changes the result and is not the plan or the model (max_new_tokens); part of the key.
        model: what the model was: its name, weight hash, dtype, ... (a part of ``HybridModel.description``).
        provenance: what should not change the result but might (batch size, seed).

    Raises:
        RecordError: an unknown kind, an empty id, log-likelihoods that are missing, too many or not finite, or values
            of another kind than a measurement, or none of one.

    >>> record = Record(kind="generate", sample_id="a", prompt_sha256=prompt_sha256("one two"), target=" three",
    ...                 plan='{"rules":[]}', plan_hash="4f53cda18c2b", prompt_tokens=3, tokens=(7, 9), text=" three")
    >>> record.key
    'generate:a:4f53cda18c2b'
    >>> Record.from_json(record.to_json()) == record
    True
    """

    kind: Kind
    sample_id: str
    prompt_sha256: str
    target: str
    plan: str
    plan_hash: str
    prompt_tokens: int
    choices: tuple[str, ...] = ()
    metadata: Metadata = field(default_factory=dict)
    tokens: tuple[int, ...] = ()
    text: str = ""
    loglikelihoods: tuple[float, ...] = ()
    token_counts: tuple[int, ...] = ()
    beyond_window: Mapping[str, int] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)
    settings: Metadata = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise RecordError(f"Record.kind is one of {get_args(Kind)}, got {self.kind!r}")
        if not self.sample_id or not self.target:
            raise RecordError(f"a record needs a sample_id and a target, got {self.sample_id!r} and {self.target!r}")
        wanted = max(1, len(self.choices)) if self.kind == "loglikelihood" else 0
        if not len(self.loglikelihoods) == len(self.token_counts) == wanted:
            raise RecordError(
                f"a {self.kind} record with {len(self.choices)} choices has {wanted} loglikelihoods and token_counts "
                f"(one per choice, or one for the target), got {self.loglikelihoods} and {self.token_counts} "
                f"(sample {self.sample_id!r})"
            )
        if not all(math.isfinite(value) for value in self.loglikelihoods):
            raise RecordError(
                f"log-likelihoods must be finite, got {self.loglikelihoods} (sample {self.sample_id!r}); "
                "the logits overflowed: run the model in float32"
            )
        if bool(self.values) != (self.kind == "measurement") or not all(map(_is_finite, self.values.values())):
            raise RecordError(
                f"a measurement has one finite value or more, and no other kind has any; this {self.kind} has "
                f"{dict(self.values)} (sample {self.sample_id!r})"
            )

    @property
    def key(self) -> str:
        """Unique in a run; see ``record_key``."""
        return record_key(self.kind, self.sample_id, self.plan_hash, self.settings)

    @classmethod
    def of(
        cls, sample: Sample, *, kind: Kind, plan: str, plan_hash: str, prompt_tokens: int, **outcome: Any
    ) -> "Record":
        """The record of a sample: its id, prompt hash, target, choices and metadata, with the ``outcome`` fields.

        >>> sample = Sample(id="a", prompt="one two", target=" three", metadata={"context_length": 3})
        >>> Record.of(sample, kind="loglikelihood", plan='{"rules":[]}', plan_hash="4f53cda18c2b", prompt_tokens=3,
        ...           loglikelihoods=(-1.5,), token_counts=(1,)).metadata
        {'context_length': 3}
        """
        return cls(
            kind=kind,
            sample_id=sample.id,
            prompt_sha256=prompt_sha256(sample.prompt),
            target=sample.target,
            plan=plan,
            plan_hash=plan_hash,
            prompt_tokens=prompt_tokens,
            choices=tuple(sample.choices),
            metadata=dict(sample.metadata),
            **outcome,
        )

    def to_json(self) -> str:
        """One line of strict JSON, ASCII only, with the key in front.

        Raises:
            RecordError: a value that JSON has no word for.
        """
        plain = {"key": self.key, **{name: getattr(self, name) for name in _FIELDS}}
        try:
            return json.dumps(plain, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise RecordError(
                f"a record holds text, numbers, booleans and null only; record {self.key!r} does not ({error}). "
                "Convert its values (a tensor: .item()) before building it"
            ) from error

    @classmethod
    def from_json(cls, line: str) -> "Record":
        """Read ``to_json`` back.

        Raises:
            RecordError: not a JSON object, a field missing or unknown, a value of the wrong type, or a key that does
                not follow from the fields.
        """
        try:
            plain = json.loads(line)
        except ValueError as error:
            raise RecordError(f"not JSON: {error}") from error
        if not isinstance(plain, dict):
            raise RecordError(f"a record is a JSON object, got {type(plain).__name__}")
        key = plain.pop("key", None)
        if missing := _REQUIRED - set(plain):
            raise RecordError(f"a record has the field(s) {sorted(missing)}, which are missing")
        if unknown := set(plain) - set(_FIELDS):
            raise RecordError(f"a record has the fields {list(_FIELDS)}, not {sorted(unknown)}")
        for name, value in plain.items():
            kind, inner = _JSON_TYPES[name]
            if not _is(value, kind) or (kind is list and not all(_is(item, inner) for item in value)):
                raise RecordError(f"Record.{name} has the wrong type: {value!r:.80}")
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in plain.items()}
        record = cls(**fields)
        if record.key != key:
            raise RecordError(f"the key should be {record.key!r}, got {key!r}")
        return record


_FIELDS = tuple(f.name for f in dataclasses.fields(Record))
_REQUIRED = {
    f.name
    for f in dataclasses.fields(Record)
    if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
}
_JSON_TYPES: dict[str, tuple[type, type]] = {
    **dict.fromkeys(("kind", "sample_id", "prompt_sha256", "target", "plan", "plan_hash", "text"), (str, object)),
    **dict.fromkeys(("metadata", "settings", "model", "provenance", "beyond_window", "values"), (dict, object)),
    "prompt_tokens": (int, object),
    "choices": (list, str),
    "tokens": (list, int),
    "token_counts": (list, int),
    "loglikelihoods": (list, float),
}


def _is(value: object, kind: type) -> bool:
    if isinstance(value, bool) and kind in (int, float):
        return False
    return isinstance(value, (int, float) if kind is float else kind)


def _is_finite(value: object) -> bool:
    return _is(value, float) and math.isfinite(value)  # pyright: ignore[reportArgumentType]
