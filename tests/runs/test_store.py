import json
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segregation.errors import RecordError
from segregation.prompts.sample import Sample
from segregation.runs.record import Record
from segregation.runs.store import RunFolder, read_manifest, read_records, run_path

MANIFEST = {"model": {"name": "tiny", "weights_sha256": "ab"}, "seed": 0, "batch_size": 4, "command": "one"}
SAMPLES = [Sample(id=f"sample {n}", prompt=f"prompt {n} ü", target="x") for n in range(5)]


def record(sample, plan_hash="p"):
    return Record.of(sample, kind="generate", plan="{}", plan_hash=plan_hash, prompt_tokens=2, text="é\n\u2028x")


def pending(folder, plan_hash="p"):
    return folder.pending(SAMPLES, kind="generate", plan_hash=plan_hash)


def test_records_come_back_in_order_and_are_not_asked_for_again(tmp_path):
    folder = RunFolder(tmp_path / "run", MANIFEST)
    assert pending(folder) == SAMPLES
    folder.append(record(SAMPLES[3]), record(SAMPLES[1]))
    folder.append(record(SAMPLES[1], "q"))
    assert [r.sample_id for r in folder.records()] == ["sample 3", "sample 1", "sample 1"]
    for again in (folder, RunFolder(tmp_path / "run", MANIFEST)):
        assert pending(again) == [SAMPLES[0], SAMPLES[2], SAMPLES[4]]
        assert pending(again, "q") == [SAMPLES[n] for n in (0, 2, 3, 4)]
        assert len(again) == 3
        assert record(SAMPLES[3]).key in again
    assert read_records(tmp_path / "run") == read_records(tmp_path / "run" / "records.jsonl") == folder.records()


def test_a_run_killed_at_any_byte_of_its_last_line_neither_repeats_nor_drops(tmp_path):
    folder = RunFolder(tmp_path, MANIFEST)
    folder.append(record(SAMPLES[0]))
    file = tmp_path / "records.jsonl"
    before = file.stat().st_size
    folder.append(record(SAMPLES[1]))
    content = file.read_bytes()
    for size in range(before, len(content)):
        file.write_bytes(content[:size])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            resumed = RunFolder(tmp_path, MANIFEST)
        assert [str(w.message) for w in caught if "line 2: dropped" in str(w.message)] == [
            str(w.message) for w in caught
        ]
        assert len(caught) == (size > before)
        assert file.stat().st_size == before
        assert pending(resumed) == SAMPLES[1:]
        resumed.append(*map(record, pending(resumed)))
        assert [r.sample_id for r in read_records(tmp_path)] == [sample.id for sample in SAMPLES]


@settings(max_examples=50, deadline=None)
@given(order=st.permutations(range(5)), cuts=st.lists(st.floats(0, 1), max_size=6))
def test_however_often_it_is_killed_every_cell_is_there_once(tmp_path_factory, order, cuts):
    path = tmp_path_factory.mktemp("run")
    file = path / "records.jsonl"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for cut in cuts:
            folder = RunFolder(path, MANIFEST)
            for n in order:
                if SAMPLES[n] in pending(folder):
                    folder.append(record(SAMPLES[n]))
            content = file.read_bytes()
            file.write_bytes(content[: int(cut * len(content))])
        folder = RunFolder(path, MANIFEST)
        folder.append(*map(record, pending(folder)))
    assert sorted(r.sample_id for r in read_records(path)) == [sample.id for sample in SAMPLES]


def test_reading_skips_an_unfinished_line_and_changes_nothing(tmp_path):
    RunFolder(tmp_path, MANIFEST).append(record(SAMPLES[0]), record(SAMPLES[1]))
    file = tmp_path / "records.jsonl"
    file.write_bytes(content := file.read_bytes()[:-5])
    with pytest.warns(UserWarning, match=r"records\.jsonl, line 2: dropped"):
        assert len(read_records(tmp_path)) == 1
    assert file.read_bytes() == content


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda lines: [lines[0], b'{"key": "generate', lines[2]], "line 2 is not a record: not JSON"),
        (lambda lines: [lines[0], lines[1][:40], lines[2]], "line 2 is not a record"),
        (lambda lines: [b"", *lines], "line 1 is not a record"),
        (lambda lines: [*lines[:2], b"\xff\xff"], "line 3 is not a record"),
        (lambda lines: [lines[0], b"null", lines[2]], "line 2 is not a record: a record is a JSON object"),
        (lambda lines: [*lines, lines[1]], "line 4 is not a record: its key .* is already on line 2"),
    ],
)
def test_any_other_corrupt_line_is_refused_with_its_number_and_a_remedy(tmp_path, spoil, message):
    RunFolder(tmp_path, MANIFEST).append(*map(record, SAMPLES[:3]))
    file = tmp_path / "records.jsonl"
    spoiled = b"\n".join(spoil(file.read_bytes().splitlines())) + b"\n"
    file.write_bytes(spoiled)
    for read in (lambda: RunFolder(tmp_path, MANIFEST), lambda: read_records(tmp_path)):
        with pytest.raises(RecordError, match=rf"records\.jsonl, {message}.*Delete that line"):
            read()
    assert file.read_bytes() == spoiled


def test_another_manifest_is_refused_and_the_differing_fields_are_named(tmp_path):
    RunFolder(tmp_path, MANIFEST)
    other = {"model": {"name": "tiny", "weights_sha256": "cd"}, "batch_size": 9, "command": "two", "dtype": "bfloat16"}
    with pytest.raises(RecordError) as caught:
        RunFolder(tmp_path, other)
    message = str(caught.value)
    for part in ("model.weights_sha256: the folder has 'ab', this run has 'cd'", "dtype", "seed", "another name"):
        assert part in message
    assert "command" not in message
    assert "batch_size" not in message
    RunFolder(tmp_path, {**MANIFEST, "batch_size": 9, "command": "two"})
    assert read_manifest(tmp_path)["command"] == "one"


def test_a_new_run_does_not_go_on_with_an_old_one(tmp_path):
    RunFolder.start(tmp_path / "run", MANIFEST).append(record(SAMPLES[0]))
    with pytest.raises(RecordError, match="--resume"):
        RunFolder.start(tmp_path / "run", MANIFEST)


def test_a_record_is_written_once(tmp_path):
    folder = RunFolder(tmp_path, MANIFEST)
    folder.append(record(SAMPLES[0]))
    for twice in ([record(SAMPLES[0])], [record(SAMPLES[1]), record(SAMPLES[1])]):
        with pytest.raises(RecordError, match="already has the record"):
            folder.append(*twice)
    assert len(folder.records()) == 1


def test_a_write_that_fails_leaves_whole_lines_only(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path, MANIFEST)
    folder.append(record(SAMPLES[0]))
    before = (tmp_path / "records.jsonl").read_bytes()

    def full(_: int) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="no space left"):
            folder.append(record(SAMPLES[1]))
    assert (tmp_path / "records.jsonl").read_bytes() == before
    assert pending(folder) == SAMPLES[1:]
    folder.append(record(SAMPLES[1]))
    assert len(folder.records()) == 2


def test_samples_that_changed_since_are_refused(tmp_path):
    folder = RunFolder(tmp_path, MANIFEST)
    folder.append(record(SAMPLES[0]))
    changed = Sample(id=SAMPLES[0].id, prompt="another", target="x")
    with pytest.raises(RecordError, match="another prompt"):
        folder.pending([changed], kind="generate", plan_hash="p")
    with pytest.raises(RecordError, match="twice"):
        folder.pending([SAMPLES[1], SAMPLES[1]], kind="generate", plan_hash="p")


def test_folders_that_are_no_runs_are_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RecordError, match="is a file"):
        RunFolder(tmp_path / "file", MANIFEST)
    with pytest.raises(RecordError, match="no records at"):
        read_records(tmp_path / "nowhere")
    with pytest.raises(RecordError, match="no manifest"):
        read_manifest(tmp_path)
    (tmp_path / "records.jsonl").write_text(record(SAMPLES[0]).to_json() + "\n")
    with pytest.raises(RecordError, match=r"no manifest\.json beside it"):
        RunFolder(tmp_path, MANIFEST)
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST)[:-3])
    with pytest.raises(RecordError, match="is not JSON"):
        RunFolder(tmp_path, MANIFEST)
    with pytest.raises(RecordError, match="plain JSON"):
        RunFolder(tmp_path / "new", {"x": object()})


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../up", "a/b", "/abs", "a\\b", "a\nb", "-flag", ".hidden", "x" * 101, "a\0"]
)
def test_names_that_leave_their_folder_are_refused(tmp_path, name):
    with pytest.raises(RecordError, match="a run's name is"):
        run_path(tmp_path, name)


def test_a_link_that_leads_out_is_refused(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "good-1.0").symlink_to(tmp_path)
    with pytest.raises(RecordError, match="leads out"):
        run_path(tmp_path / "runs", "good-1.0")
    assert run_path(tmp_path / "runs", "k=2,seed+1") == tmp_path / "runs" / "k=2,seed+1"
