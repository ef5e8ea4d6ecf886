"""Small files in the layout of the starter code against the examples, or the one line of error,
that must come of them; and the real files, where they are, against their published row counts."""

import csv
import pickle

import pytest

from benchmarks.multitask_bert.data.files import DataError, preprocess, read_split
from benchmarks.multitask_bert.tasks import TASKS
from tests.paths import SHARED

REAL = SHARED / "data"

SST = "\tid\tsentence\tsentiment\n"
QUORA = "\tid\tsentence1\tsentence2\tis_duplicate\n"
STS = "\tid\tsentence1\tsentence2\tsimilarity\n"


@pytest.fixture
def write(tmp_path):
    """Writes the text of one split's file into a folder, and returns the folder."""

    def write(task, text, split="train"):
        content = text if isinstance(text, bytes) else text.encode()
        (tmp_path / TASKS[task].files[split]).write_bytes(content)
        return tmp_path

    return write


def error_of(directory, task="sst", split="train"):
    """The one line that reading a split must fail with."""
    with pytest.raises(DataError) as caught:
        read_split(directory, task, split)
    message = str(caught.value)
    assert "\n" not in message
    assert str(directory) in message
    assert "; " in message, "there must be a remedy"
    return message


def test_reviews_are_lower_case_and_stripped(write):
    directory = write("sst", SST + "7\tAB1\t  A Film ,  isn't It ? \t3\n")
    split = read_split(directory, "sst", "train")
    (example,) = split.examples
    assert (example.id, example.texts, example.label) == ("ab1", ("a film ,  isn't it ?",), 3.0)
    assert (split.task, split.name, split.num_skipped) == ("sst", "train", 0)
    assert split.source == str(directory / "ids-sst-train.csv")


def test_pairs_have_their_marks_set_off_and_their_spaces_normalised(write):
    directory = write("sts", STS + "0\tX\tWho's there,\xa0 Bob?  \tNo.One!\t4.25\n")
    (example,) = read_split(directory, "sts", "train").examples
    assert example.texts == ("who 's there , bob ?", "no .one!")
    assert example.label == 4.25


@pytest.mark.parametrize("text", ["Why?", "a.b,c'd?e", "  Tab\there ", "No mark", "İ. ?"])
def test_preprocessing_of_pairs_is_that_of_a_plain_description(text):
    spaced = "".join(" " + c if c in ".?,'" else c for c in text.lower())
    assert preprocess(TASKS["quora"], text) == " ".join(spaced.split())


def test_rows_without_a_label_are_counted_and_skipped(write):
    directory = write("quora", QUORA + "0\ta\tx\ty\t\n1\tb\tx\tz\t1.0\n2\tc\tx\t\t  \n")
    split = read_split(directory, "quora", "train")
    assert [example.id for example in split.examples] == ["b"]
    assert split.num_skipped == 2


def test_the_test_split_needs_no_label(write):
    directory = write("sst", "0\t\tid\tsentence\n1\t0.0\ta\tGood\n", "test")
    split = read_split(directory, "sst", "test")
    assert [(example.id, example.label) for example in split.examples] == [("a", None)]
    assert split.num_skipped == 0


def test_quoted_fields_may_hold_tabs_quotes_and_line_ends(write):
    directory = write("sst", SST + '0\ta\t"one\ttwo ""three""\nfour"\t0\n1\tb\ta "mid" quote\t4\n')
    first, second = read_split(directory, "sst", "train").examples
    assert first.texts == ('one\ttwo "three"\nfour',)
    assert second.texts == ('a "mid" quote',)


@pytest.mark.parametrize(
    "text",
    [
        SST.replace("\n", "\r\n") + "0\ta\tgood\t3\r\n",
        "\ufeff" + SST + "0\ta\tgood\t3\n",
        SST + "0\ta\tgood\t3",
        SST + "\n0\ta\tgood\t3\n\n",
        "sentiment\tsentence\tid\n3.0\tgood\ta\n",
    ],
    ids=["CRLF", "byte order mark", "no last line end", "empty lines", "other columns"],
)
def test_harmless_differences_of_form_are_accepted(write, text):
    (example,) = read_split(write("sst", text), "sst", "train").examples
    assert (example.id, example.texts, example.label) == ("a", ("good",), 3.0)


BAD_ROWS = {
    "too few fields": ("9\tx\tgood\n", "fields of the header, found 3"),
    "too many fields": ("9\tx\tgood\t3\tmore\n", "fields of the header, found 5"),
    "label no number": ("9\tx\tgood\tthree\n", "'three'"),
    "label nan": ("9\tx\tgood\tnan\n", "'nan'"),
    "label with underscore": ("9\tx\tgood\t0_3\n", "'0_3'"),
    "label too high": ("9\tx\tgood\t5\n", "from 0 to 4, found '5'"),
    "label too low": ("9\tx\tgood\t-1\n", "from 0 to 4, found '-1'"),
    "label infinite": ("9\tx\tgood\t1e999\n", "'1e999'"),
    "label no class": ("9\tx\tgood\t2.5\n", "a whole number from 0 to 4, found '2.5'"),
    "label of two lines": ('9\tx\tgood\t"3\n4"\n', r"'3\n4'"),
    "label long": (f"9\tx\tgood\t{'8' * 500}\n", "8...'"),
    "NUL": ("9\tx\tgo\0od\t3\n", "NUL"),
    "not UTF-8": (b"9\tx\tg\xffd\t3\n", "byte 0xff"),
    "half a character": ("9\tx\tgoo\u20ac".encode()[:-1] + b"\t3\n", "byte 0xe2"),
    "quote left open": ('9\tx\t"good\t3\n10\ty\tbad\t1\n', "unexpected end of data"),
    "text after a quote": ('9\tx\t"go"od\t3\n', "expected after"),
    "field too long": (f"9\tx\t{'a' * (csv.field_size_limit() + 1)}\t3\n", "field limit"),
}


@pytest.mark.parametrize(("row", "found"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_named_by_row_and_line(write, row, found):
    # Two rows come before it, one of two lines, and an empty line.
    good = SST + '0\ta\t"fi\nne"\t3\n\n1\tb\tdull\t1\n'
    bad = row if isinstance(row, bytes) else row.encode()
    message = error_of(write("sst", good.encode() + bad + b"11\tz\tgood\t3\n"))
    assert "ids-sst-train.csv: row 3 (line 6): " in message
    assert found in message
    assert len(message) < 400


@pytest.mark.parametrize(
    ("task", "row"),
    [
        ("quora", QUORA + "0\ta\tx\ty\t0.5\n"),
        ("quora", QUORA + "0\ta\tx\ty\t2\n"),
        ("sts", STS + "0\ta\tx\ty\t5.01\n"),
        ("sts", STS + "0\ta\tx\ty\t-0.1\n"),
        ("cfimdb", SST + "0\ta\tx\t2\n"),
    ],
)
def test_each_task_has_its_own_labels(write, task, row):
    assert f"{TASKS[task].label_column} must be" in error_of(write(task, row), task)


def test_scores_may_be_fractions_at_both_ends(write):
    directory = write("sts", STS + "0\ta\tx\ty\t0\n1\tb\tx\ty\t5.0\n2\tc\tx\ty\t.2\n")
    examples = read_split(directory, "sts", "train").examples
    assert [example.label for example in examples] == [0.0, 5.0, 0.2]


BAD_FILES = {
    "empty": ("", "no byte in it"),
    "empty first line": ("\n" + SST, "no header"),
    "header alone": (SST, "a header alone"),
    "no label at all": (SST + "0\ta\tgood\t\n", "1 rows without a label"),
    "no such column": ("\tid\tsentence\n0\ta\tgood\n", "header (line 1): column 'sentiment'"),
    "no id": ("\tsentence\tsentiment\n0\tgood\t3\n", "column 'id'"),
    "commas": ("id,sentence,sentiment\na,good,3\n", "column 'id'"),
    "a column twice": ("id\tid\tsentence\tsentiment\na\ta\tb\t3\n", "'id' twice"),
    "UTF-16": (SST.encode("utf-16"), "header (line 1): must be text, found byte 0xff"),
    "header open": ('\tid\t"sentence\n', "header (line 1): must be tab-separated"),
}


@pytest.mark.parametrize(("text", "found"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_file_that_is_wrong_as_a_whole_is_named(write, text, found):
    message = error_of(write("sst", text))
    assert "ids-sst-train.csv: " in message
    assert found in message


def test_a_missing_file_is_named(tmp_path):
    assert "ids-sst-train.csv: cannot be read (No such file" in error_of(tmp_path)


def test_a_folder_in_place_of_a_file_is_named(tmp_path):
    (tmp_path / "ids-sst-train.csv").mkdir()
    assert "ids-sst-train.csv: cannot be read" in error_of(tmp_path)


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="task must be one of sst, quora, sts, cfimdb, found 'x'"):
        read_split(tmp_path, "x", "train")
    with pytest.raises(ValueError, match="split must be one of train, dev, test, found 'x'"):
        read_split(tmp_path, "sst", "x")


def test_an_error_is_one_line_whatever_the_folder_is_called(tmp_path):
    with pytest.raises(DataError) as caught:
        read_split(tmp_path / "two\nlines", "sst", "train")
    assert "\n" not in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize(
    ("task", "split", "num_rows", "num_skipped"),
    [
        ("sst", "train", 8544, 0),
        ("sst", "dev", 1101, 0),
        ("sst", "test", 2210, 0),
        ("quora", "train", 16214, 1),
        ("quora", "dev", 2000, 1),
        ("sts", "train", 6040, 0),
        ("sts", "dev", 863, 0),
        ("sts", "test", 1725, 0),
        ("cfimdb", "train", 1707, 0),
        ("cfimdb", "dev", 245, 0),
        ("cfimdb", "test", 488, 0),
    ],
)
def test_real_files_have_their_rows(task, split, num_rows, num_skipped):
    if not REAL.is_dir():
        pytest.skip("the real data is not beside the repository")
    found = read_split(REAL, task, split)
    assert len(found.examples) + found.num_skipped == num_rows
    assert found.num_skipped == num_skipped


def test_real_labels_are_spread_as_published():
    if not REAL.is_dir():
        pytest.skip("the real data is not beside the repository")
    labels = [example.label for example in read_split(REAL, "sst", "dev").examples]
    assert [labels.count(c) for c in range(5)] == [139, 289, 229, 279, 165]
    scores = [example.label for example in read_split(REAL, "sts", "train").examples]
    assert sum(score >= 4 for score in scores) == 1391
