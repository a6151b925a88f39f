import pytest

from segregation.errors import SampleError
from segregation.probes.samples import ProbeSamples, exchangeable_needles, labelled
from segregation.prompts.sample import Sample
from segregation.prompts.spans import sample_spans
from segregation.zoo.words import split_of

SMALL = ProbeSamples(needles=4, haystacks=6, blocks=2, before=40, after=20)


@pytest.fixture(scope="module")
def samples(tokenizer) -> list[Sample]:
    return SMALL.samples(tokenizer)


def test_prompts_differ_in_the_sentence_alone_which_stands_at_one_place(tokenizer, samples):
    encoded = {sample.id: tokenizer(sample.prompt)["input_ids"] for sample in samples}
    assert len({len(ids) for ids in encoded.values()}) == 1
    places = {sample_spans(tokenizer, sample).tokens("needle") for sample in samples}
    [needle] = places
    assert needle[0] == SMALL.before
    assert {sample.metadata["needle_end"] for sample in samples} == {needle[-1]}
    for haystack in range(SMALL.haystacks):
        own = [encoded[sample.id] for sample in samples if sample.metadata["haystack"] == haystack]
        assert len(own) == 4 + 2  # every needle, and the decoys of its block
        assert len({tuple(ids[: needle[0]]) for ids in own}) == len({tuple(ids[needle[-1] + 1 :]) for ids in own}) == 1
        assert len(set(map(tuple, own))) == len(own)
    haystacks = {sample.metadata["haystack"]: encoded[sample.id][needle[-1] + 1 :][: SMALL.after] for sample in samples}
    assert len(set(map(tuple, haystacks.values()))) == SMALL.haystacks


def test_a_decoy_is_the_same_sentence_about_another_subject(tokenizer):
    needles, decoys = exchangeable_needles(tokenizer, 4, seed=1)
    assert len({needle.key for needle in needles}) == 1
    assert len({decoy.key for decoy in decoys} | {needles[0].key}) == 5
    for needle, decoy in zip(needles, decoys, strict=True):
        assert decoy.sentence == needle.sentence.replace(needle.key, decoy.key)
        assert split_of(needle.sentence) == split_of(decoy.sentence) == "heldout"
    assert len({len(tokenizer(one.sentence)["input_ids"]) for one in [*needles, *decoys]}) == 1


def test_nothing_that_a_probe_is_tested_on_was_in_its_training(samples):
    identity, presence = labelled(samples, "identity"), labelled(samples, "presence")
    assert len(identity.rows) == 6 * 4
    assert len(presence.rows) == 6 * 2 * 2
    assert sorted(presence.labels).count(1) == len(presence.rows) // 2
    for told, names in ((identity, ["haystack"]), (presence, ["haystack", "word"])):
        groups_of: dict[tuple[str, object], set[int]] = {}
        for row, group in zip(told.rows, told.groups, strict=True):
            for name in names:
                groups_of.setdefault((name, samples[row].metadata[name]), set()).add(group)
        assert all(len(groups) == 1 for groups in groups_of.values())
    assert {samples[row].metadata["about"] for row in identity.rows} == {"needle"}


def test_numbers_that_blocks_do_not_divide_and_foreign_samples_are_refused(tokenizer):
    with pytest.raises(SampleError, match="6 needles and 32 haystacks in 4 blocks"):
        ProbeSamples(needles=6)
    with pytest.raises(SampleError, match="was not made by ProbeSamples"):
        labelled([Sample(id="a", prompt="b", target="c")], "identity")
    with pytest.raises(SampleError, match="needle's end at token"):
        ProbeSamples(needles=4, haystacks=4, blocks=2, before=2, after=5).samples(tokenizer)
