import json
import time

import datasets
import pytest
from datasets.packaged_modules.json.json import Json

from segregation.errors import SampleError
from segregation.prompts.splits import cache_folder, load_split

ROWS = [{"text": f"row {number}", "label": number % 2, "idx": number} for number in range(5)]
COLUMNS = ("text", "label")
KEPT = [{"text": row["text"], "label": row["label"]} for row in ROWS]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of ``datasets`` that is this test's own, and no network."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def read(rows):
    return [dict(rows[position]) for position in range(len(rows))]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_a_folder_of_each_format_gives_its_rows_in_order(tmp_path, cache, suffix):
    (tmp_path / "rte").mkdir()
    if suffix == ".parquet":
        datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "rte" / "train.parquet")
    else:
        (tmp_path / "rte" / f"train{suffix}").write_text(lines(ROWS))
    assert read(load_split(tmp_path, "rte", "train", COLUMNS)) == KEPT
    assert read(load_split(str(tmp_path), "rte", "train", COLUMNS)) == KEPT
    assert not cache.exists()  # a folder is read as it is now, without a copy


def test_a_download_of_the_hub_is_a_folder_too_and_splits_with_longer_names_stay_apart(tmp_path):
    (tmp_path / "mnli").mkdir()
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: other\n---\n")
    for part in range(2):
        rows = datasets.Dataset.from_list(ROWS[3 * part : 3 * part + 3])
        rows.to_parquet(tmp_path / "mnli" / f"validation-0000{part}-of-00002.parquet")
    datasets.Dataset.from_list(ROWS[:1]).to_parquet(tmp_path / "mnli" / "validation_matched-00000-of-00001.parquet")
    assert read(load_split(tmp_path, "mnli", "validation", COLUMNS)) == KEPT
    assert read(load_split(tmp_path, "mnli", "validation_matched", COLUMNS)) == KEPT[:1]


def test_what_datasets_has_cached_is_read_as_datasets_reads_it_offline(tmp_path, cache, monkeypatch):
    (tmp_path / "rows.jsonl").write_text(lines(ROWS))
    builder = Json(
        cache_dir=str(cache),
        dataset_name="TinyGlue",
        config_name="rte",
        config_id="rte",
        hash="0123",
        data_files={"validation": [str(tmp_path / "rows.jsonl")], "test": [str(tmp_path / "rows.jsonl")]},
    )
    builder.download_and_prepare()
    (cache / "tiny_glue").rename(cache / "nobody___tiny_glue")  # as if its files had come from the hub
    assert cache_folder("nobody/TinyGlue", "rte") == cache / "nobody___tiny_glue" / "rte"

    expected = datasets.load_dataset("nobody/TinyGlue", "rte", split="validation").select_columns(list(COLUMNS))
    monkeypatch.setattr(datasets, "load_dataset", None)  # a cached split needs no request
    assert read(load_split("nobody/TinyGlue", "rte", "validation", COLUMNS)) == list(expected) == KEPT


@pytest.mark.parametrize("offline", [True, False])
def test_a_dataset_that_is_not_here_is_refused_at_once_with_what_to_do(cache, monkeypatch, offline):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("HF_HOME", "/somewhere")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    start = time.monotonic()
    with pytest.raises(SampleError) as refused:
        load_split("nobody/no-such", "rte", "train", COLUMNS)
    assert time.monotonic() - start < 10  # datasets itself tries for half a minute
    message = str(refused.value)
    for part in ("'nobody/no-such'", "HF_HOME=/somewhere", "HF_HUB_OFFLINE=(not set)", "HF_DATASETS_OFFLINE="):
        assert part in message
    assert str(cache / "nobody___no-such" / "rte") in message
    assert "source=FOLDER, where FOLDER holds rte/train.parquet, .jsonl or .json" in message


def test_what_a_folder_lacks_is_named(tmp_path):
    (tmp_path / "rte").mkdir()
    (tmp_path / "rte" / "test.csv").write_text("a\n1\n")
    with pytest.raises(SampleError, match=r"holds \['test.csv'\].*rte/test.parquet, .jsonl or .json"):
        load_split(tmp_path, "rte", "test", COLUMNS)
    (tmp_path / "rte" / "test.jsonl").write_text(lines([{"text": "a", "answer": 1}]))
    with pytest.raises(SampleError, match=r"\['label'\] are missing, it has \['text', 'answer'\]"):
        load_split(tmp_path, "rte", "test", COLUMNS)
    (tmp_path / "rte" / "train.jsonl").write_text('{"text": ')
    with pytest.raises(SampleError, match=r"train.jsonl could not be read"):
        load_split(tmp_path, "rte", "train", COLUMNS)
    with pytest.raises(SampleError, match="a folder that exists or a name on the hub"):
        load_split(tmp_path / "nowhere", "rte", "test", COLUMNS)


def test_a_split_without_rows_is_refused(monkeypatch):
    empty = datasets.Dataset.from_dict({"text": [], "label": []})
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: empty)
    with pytest.raises(SampleError, match="no rows"):
        load_split("nobody/tiny-glue", "rte", "test", COLUMNS)
