"""What ``--data`` names against the splits that must come of it, and the line about them."""

import pytest

from benchmarks.multitask_bert.data.corpus import load_corpus
from benchmarks.multitask_bert.data.files import DataError, read_split
from benchmarks.multitask_bert.data.synthetic import make_corpus
from tests.paths import SHARED

REAL = SHARED / "data"


@pytest.fixture
def folder(tmp_path):
    """A folder with small files of SST and Quora."""
    sst = "\tid\tsentence\tsentiment\n" + "".join(f"{n}\ts{n}\tgood\t3\n" for n in range(4))
    quora = "\tid\tsentence1\tsentence2\tis_duplicate\n0\tq\ta\tb\t1\n1\tr\ta\tb\t\n"
    for split in ("train", "dev"):
        (tmp_path / f"ids-sst-{split}.csv").write_text(sst, encoding="utf-8")
        (tmp_path / f"quora-{split}.csv").write_text(quora, encoding="utf-8")
    return tmp_path


def test_the_built_in_corpus_is_that_of_the_grammar():
    corpus = load_corpus("synthetic", ["sts", "sst"], ["dev", "test"])
    written = make_corpus()
    assert list(corpus.splits) == [
        ("sts", "dev"),
        ("sts", "test"),
        ("sst", "dev"),
        ("sst", "test"),
    ]
    assert all(split == written.splits[key] for key, split in corpus.splits.items())
    assert corpus.name == "synthetic"
    assert "NOT SST, Quora and STS" in corpus.notice
    assert "\n" not in corpus.notice


def test_a_folder_is_read_split_by_split(folder):
    corpus = load_corpus(str(folder), ["quora", "sst"])
    assert list(corpus.splits) == [
        ("quora", "train"),
        ("quora", "dev"),
        ("sst", "train"),
        ("sst", "dev"),
    ]
    for (task, name), split in corpus.splits.items():
        assert split == read_split(folder, task, name)
    assert corpus.name == str(folder)


def test_the_notice_counts_examples_and_skipped_rows(folder):
    notice = load_corpus(str(folder), ["sst", "quora"]).notice
    assert "SST 4 train, 4 dev;" in notice
    assert "Quora 1 train (1 skipped without a label), 1 dev (1 skipped without a label)" in notice
    assert "\n" not in notice


def test_a_quora_split_that_is_not_the_published_one_is_called_so(folder):
    warning = "not the published one"
    assert warning in load_corpus(str(folder), ["quora"]).notice
    assert warning in load_corpus(str(folder), ["quora"], ["dev"]).notice
    assert warning not in load_corpus(str(folder), ["sst"]).notice
    rows = "".join(f"{n}\tq{n}\ta\tb\t1\n" for n in range(141_498))
    header = "\tid\tsentence1\tsentence2\tis_duplicate\n"
    (folder / "quora-train.csv").write_text(header + rows, encoding="utf-8")
    assert warning not in load_corpus(str(folder), ["quora"], ["train"]).notice


def test_what_a_source_does_not_have_is_refused(folder):
    with pytest.raises(DataError, match="split must be one of train, dev, test, found 'all'"):
        load_corpus("synthetic", ["sst"], ["all"])
    with pytest.raises(DataError, match=r"task must be one of .*, found 'squad'"):
        load_corpus("synthetic", ["squad"])
    with pytest.raises(DataError, match="must be a folder"):
        load_corpus(str(folder / "nowhere"), ["sst"])
    with pytest.raises(DataError, match=r"sts-train\.csv: cannot be read"):
        load_corpus(str(folder), ["sts"])
    with pytest.raises(ValueError, match="task must be one of"):
        load_corpus(str(folder), ["mnli"])


def test_the_real_folder_says_that_its_quora_split_is_another():
    if not REAL.is_dir():
        pytest.skip("the real data is not beside the repository")
    notice = load_corpus(str(REAL), ["sst", "quora", "sts", "cfimdb"]).notice
    assert "SST 8544 train, 1101 dev" in notice
    assert "STS 6040 train, 863 dev" in notice
    assert "not the published one" in notice
