"""What works with which family, as the Markdown of README.md and docs/families.md, from what the contracts asserted."""

import inspect
from collections.abc import Mapping, Sequence
from importlib import import_module

from segregation.models.family import Family, families, layer_types_of
from tests.contract.found import COLUMNS, NONE, Found
from tests.tiny import tiny_config

BEGIN, END = "<!-- families -->", "<!-- /families -->"

SCANS = {
    "rg_lru": "RG-LRU",
    "mamba": "Mamba-1",
    "mamba2": "Mamba-2",
    "gated_delta": "gated delta rule",
    "kda": "KDA",
    "lightning": "lightning attention",
    "short_conv": "short convolution",
}


def layers(family: Family) -> str:
    """What its layers mix positions with."""
    kinds = set(layer_types_of(tiny_config(family.name)))
    scan = SCANS[family.scan] if family.scan else ""
    if kinds == {"attention"}:
        return "attention"
    if kinds == {"recurrent"}:
        return scan
    together = {frozenset({"hybrid"}): " in every layer", frozenset({"recurrent", "hybrid"}): " in some layers"}
    return f"{scan} + attention{together.get(frozenset(kinds), '')}"


def described(family: Family) -> tuple[str, str, str]:
    """A family's name, what it is, and what is particular, from the docstring of its file."""
    text = inspect.getdoc(import_module(f"segregation.models.families.{family.name}")) or ""
    head, _, rest = text.partition("\n\n")
    name, _, what = " ".join(head.split()).partition(": ")
    return name, what, " ".join(rest.split()).removeprefix("What is particular: ").replace("``", "`")


def in_order() -> list[Family]:
    """Hybrids first, then the controls with layers of one kind; each by name."""
    kinds = {family.name: set(layer_types_of(tiny_config(family.name))) for family in families().values()}
    control = {name: own in ({"attention"}, {"recurrent"}) for name, own in kinds.items()}
    return sorted(families().values(), key=lambda family: (control[family.name], described(family)[0].lower()))


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table, the first row its heading."""
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def table(found: Found) -> str:
    """The table of what works with which family."""
    rows = [["family", "layers", *(column.title for column in COLUMNS)]]
    for family in in_order():
        name = described(family)[0]
        rows.append([name, layers(family), *(found.cell(family.name, column) for column in COLUMNS)])
    return markdown(rows)


def _number(measured: float) -> str:
    """One digit of it.

    >>> _number(3.4e-6), _number(0.0), _number(2.1)
    ('3e-6', '0', '2')
    """
    return f"{measured:.0e}".replace("e-0", "e-").removesuffix("e+00") if measured else "0"


def page(found: Found) -> str:
    """docs/families.md: the table, what its columns mean, every reason, and what was measured."""
    gaps = list(dict.fromkeys(name for own in found.gaps.values() for name in own))
    measured = [["family", *gaps]]
    parts = []
    for family in in_order():
        name, what, particular = described(family)
        own = found.gaps[family.name]
        measured.append([name, *(_number(own[gap]) if gap in own else NONE for gap in gaps)])
        why = [
            f"- **{column.title}**: {reason}." for column in COLUMNS for reason in found.reasons(family.name, column)
        ]
        head = f"### {name}\n\n`{family.model_type}`: {what}\n\nWhat is particular: {particular}"
        parts.append("\n".join([head, *(["\nWhat it cannot do, and is refused:\n", *why] if why else [])]))
    meanings = "\n".join(f"- **{column.title}**: {column.meaning}." for column in COLUMNS)
    return PAGE.format(table=table(found), meanings=meanings, measured=markdown(measured), families="\n\n".join(parts))


PAGE = """# Families

<!-- Written by `python -m tests.contract`; do not edit. -->

A model of one of these families can be opened, from a folder or from the hub; one of any other is refused by name. The
table is written by the contract suite (`tests/contract/`), which builds a tiny random model of every family from its
transformers config, runs it beside the same module never wrapped, and compares.

{table}

`yes`: the contract holds. `no`: it is refused, with the reason below. `–`: there are no such layers.

{meanings}

## What was measured

Largest absolute differences, of logits with a standard deviation of 0.2 to 1 (in ln p where the heading says so), in
fp32 where it names no dtype, on tiny random models on a CPU. Where the prefill of a family clamps its step dt from
below, one forward and token by token are two functions; the rest is float noise, or the rounding of bfloat16, after
which a router may send a token to another expert.

{measured}

## Add a family

Two things: `src/segregation/models/families/NAME.py`, a `Family` that says where the parts are, which config fields are
understood and what cannot be done; and its tiny config in `tests/tiny.py`, small, with every kind of layer at least
twice. Then `make families` tests every contract on it and writes these tables.

## One by one

{families}
"""


def into_readme(text: str, found_table: str) -> str:
    """README with this table between its markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the text lacks the markers {BEGIN} and {END}, between which the table goes")
    return f"{before}{BEGIN}\n{found_table}\n{END}{after}"


def read_table(text: str) -> Mapping[str, Mapping[str, str]]:
    """By family and column, the table that stands between the markers of a README."""
    lines = text.partition(BEGIN)[2].partition(END)[0].strip().splitlines()
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}
