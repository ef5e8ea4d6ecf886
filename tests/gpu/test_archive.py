"""Files through archives and back: the same bytes, in parts below a size."""

import tarfile

import numpy as np
import pytest

from benchmarks.gpu import archive

LIMIT = 100_000


@pytest.fixture
def folder(tmp_path):
    """Files that no archive makes smaller, in folders."""
    random = np.random.default_rng(0)
    for number in range(20):
        path = tmp_path / "from" / f"folder-{number % 3}" / f"{number:02}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(random.bytes(1000 * number))
    return tmp_path / "from"


def contents(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def split(folder, out, limit=LIMIT):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return archive.split(files, folder, out, "results", max_bytes=limit)


def test_parts_are_below_the_limit_and_hold_everything(folder, tmp_path):
    parts, left_out = split(folder, tmp_path / "out")
    assert left_out == []
    assert [part.name for part in parts] == [f"results-{n:02}.tar.gz" for n in (1, 2, 3)]
    assert all(part.stat().st_size <= LIMIT for part in parts)
    for part in parts:
        archive.extract(part, tmp_path / "to")
    assert contents(tmp_path / "to") == contents(folder)


def test_what_can_be_compressed_takes_fewer_parts(tmp_path):
    for number in range(20):
        path = tmp_path / "from" / f"{number:02}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(LIMIT // 2))
    parts, _ = split(tmp_path / "from", tmp_path / "out")
    assert len(parts) == 1


def test_parts_of_before_are_replaced(folder, tmp_path):
    before, _ = split(folder, tmp_path / "out")
    after, _ = split(folder / "folder-1", tmp_path / "out")
    assert 0 < len(after) < len(before)
    assert sorted((tmp_path / "out").iterdir()) == after


def test_a_file_above_the_limit_is_named(folder, tmp_path):
    (folder / "large").write_bytes(bytes(LIMIT))
    parts, left_out = split(folder, tmp_path / "out")
    assert left_out == [folder / "large"]
    assert len(parts) == 3


def test_nothing_gives_no_part(tmp_path):
    assert archive.split([], tmp_path, tmp_path / "out", "results") == ([], [])


def test_what_is_there_stays(folder, tmp_path):
    parts, _ = split(folder, tmp_path / "out")
    (tmp_path / "to" / "folder-0").mkdir(parents=True)
    (tmp_path / "to" / "folder-0" / "03").write_text("newer")
    for part in parts:
        archive.extract(part, tmp_path / "to")
    assert contents(tmp_path / "to") == {**contents(folder), "folder-0/03": b"newer"}


def test_no_name_leads_out_of_the_folder(folder, tmp_path):
    with tarfile.open(tmp_path / "bad.tar.gz", "w:gz") as file:
        file.add(folder / "folder-1" / "01", "../outside")
    with pytest.raises(ValueError, match=r"bad\.tar\.gz: must stay below its folder"):
        archive.extract(tmp_path / "bad.tar.gz", tmp_path / "to")
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("keep", [0, 100, 50_000])
def test_a_damaged_archive_is_refused(folder, tmp_path, keep):
    (part, *_), _ = split(folder, tmp_path / "out")
    part.write_bytes(part.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"results-01\.tar\.gz: must be a readable archive"):
        archive.extract(part, tmp_path / "to")
