"""What `fetch` leaves in a folder against what a local HTTP server has, and sends amiss."""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import socket
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pooch
import pytest
from tqdm import tqdm

from benchmarks.multitask_bert.data import fetch as fetch_module
from benchmarks.multitask_bert.data.fetch import BASE_URL, REGISTRY, FetchError, describe, fetch
from benchmarks.multitask_bert.tasks import TASKS
from tests.paths import SHARED

DATA = SHARED / "data"
HEADER = b"\tid\tsentence1\tsentence2\tis_duplicate\n"
FILES = {
    "first.csv": b"id\tsentence\n1\tone\n",
    "quora-dev.csv": HEADER + b"0\ta1\tred\tblue\t0.0\n1\ta2\tred\tscarlet\t1.0\n",
    "last.csv": bytes(range(256)) * 1024,
}
# As in the real one, the Quora file has no known hash.
FAKE_REGISTRY = {
    name: None if name.startswith("quora") else hashlib.sha256(content).hexdigest()
    for name, content in FILES.items()
}


class Server(ThreadingHTTPServer):
    """Serves ``files`` below ``/data/``, and counts requests.

    ``faults`` has, by file name, what goes wrong: "truncated", "stalled" or a status.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = dict(FILES)
        self.faults = {}
        self.requests = []
        self.is_over = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/data/"

    def handle_error(self, request, client_address):
        """A client that hangs up is what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        name = self.path.removeprefix("/data/")
        self.server.requests.append(name)
        fault = self.server.faults.get(name)
        if fault == "stalled":
            self.server.is_over.wait()
            return
        if isinstance(fault, int):
            self.send_error(fault)
            return
        content = self.server.files[name]
        self.send_response(200)
        if "gzip" in self.headers.get("Accept-Encoding", ""):  # as GitHub's server does
            content = gzip.compress(content)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if fault == "truncated" else content)

    def log_message(self, *args):
        """Nothing on stderr."""


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.is_over.set()
        server.shutdown()
        thread.join()


def get(server, directory, registry=FAKE_REGISTRY):
    return fetch(directory, base_url=server.url, registry=registry, progress=False)


def content(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def refusal(server, directory, **arguments):
    """The message of the error, which is one line."""
    with pytest.raises(FetchError) as caught:
        get(server, directory, **arguments)
    message = str(caught.value)
    assert message.splitlines() == [message]
    return message


def test_files_are_as_served(server, tmp_path):
    folder = tmp_path / "made" / "here"
    assert get(server, folder) == [folder / name for name in FILES]
    assert content(folder) == FILES


def test_files_are_as_readable_as_their_folder(server, tmp_path):
    tmp_path.chmod(0o750)
    get(server, tmp_path)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


def test_a_second_time_nothing_is_downloaded(server, tmp_path):
    get(server, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    server.requests.clear()
    assert get(server, tmp_path) == [tmp_path / name for name in FILES]
    assert server.requests == []
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_only_absent_files_are_downloaded(server, tmp_path):
    (tmp_path / "first.csv").write_bytes(FILES["first.csv"])
    get(server, tmp_path)
    assert server.requests == ["quora-dev.csv", "last.csv"]
    assert content(tmp_path) == FILES


def test_a_base_url_needs_no_slash(server, tmp_path):
    server.url = server.url.rstrip("/")
    get(server, tmp_path)
    assert content(tmp_path) == FILES


@pytest.mark.parametrize("name", ["quora-dev.csv", "last.csv"])
@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("truncated", "bytes read"),
        (404, "HTTP status 404 Not Found"),
        (503, "HTTP status 503 Service Unavailable"),
    ],
)
def test_a_failed_download_leaves_nothing_and_is_made_good(server, tmp_path, name, fault, found):
    server.faults[name] = fault
    message = refusal(server, tmp_path)
    assert message.startswith(f"{name}: ")
    assert found in message
    assert server.url + name in message
    assert f"into {tmp_path} by hand" in message
    names = list(FILES)
    assert content(tmp_path) == {before: FILES[before] for before in names[: names.index(name)]}

    del server.faults[name]
    server.requests.clear()
    get(server, tmp_path)
    assert server.requests == names[names.index(name) :]
    assert content(tmp_path) == FILES


def test_a_truncated_body_is_found_without_a_hash(server, tmp_path):
    # Half of these rows is a file that would be read without complaint.
    server.files["quora-dev.csv"] = HEADER + b"0\ta1\tred\tblue\t0.0\n" * 999
    server.faults["quora-dev.csv"] = "truncated"
    sent = len(server.files["quora-dev.csv"]) // 2
    assert f"{sent} bytes read" in refusal(server, tmp_path)


def test_a_wrong_hash_leaves_nothing(server, tmp_path):
    server.files["first.csv"] = b"id\tsentence\n1\ttwo\n"
    message = refusal(server, tmp_path)
    assert message.startswith("first.csv: ")
    assert hashlib.sha256(server.files["first.csv"]).hexdigest() in message
    assert FAKE_REGISTRY["first.csv"] in message
    assert content(tmp_path) == {}


@pytest.mark.parametrize(
    "page", [b"<!DOCTYPE html>\n<title>Log in</title>\n", b"", HEADER.replace(b"id\t", b"\xff\t")]
)
def test_without_a_hash_the_columns_are_checked(server, tmp_path, page):
    server.files["quora-dev.csv"] = page
    message = refusal(server, tmp_path)
    assert message.startswith("quora-dev.csv: ")
    assert "no column id" in message
    assert "quora-dev.csv" not in content(tmp_path)


def test_a_server_that_is_gone(server, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # not listening, so that a connection is refused
        server.url = f"http://127.0.0.1:{free.getsockname()[1]}/data/"
        message = refusal(server, tmp_path)
    assert message.startswith("first.csv: ")
    assert "found Connection refused;" in message
    assert content(tmp_path) == {}


def test_no_name_resolution(server, tmp_path, monkeypatch):
    def fail(*arguments, **keywords):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setenv("NO_PROXY", "*")
    server.url = "http://nowhere.invalid/data/"
    assert "found Name or service not known;" in refusal(server, tmp_path)
    assert content(tmp_path) == {}


def test_a_server_that_does_not_answer(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch_module, "_TIMEOUT", 0.2)
    server.faults["quora-dev.csv"] = "stalled"
    start = time.monotonic()
    assert "found no answer within 0.2 s;" in refusal(server, tmp_path)
    assert time.monotonic() - start < 10
    assert content(tmp_path) == {"first.csv": FILES["first.csv"]}


def test_an_interrupt_leaves_whole_files_only(server, tmp_path, monkeypatch):
    final = tmp_path / "last.csv"
    seen = []

    class Bar(tqdm):
        def update(self, n=1):
            written = [path for path in tmp_path.iterdir() if path.name not in FILES]
            sizes = [path.stat().st_size for path in written]
            if sum(sizes) > 100_000:  # no other file is so long
                seen.extend(sizes)
                raise KeyboardInterrupt

    monkeypatch.setattr(fetch_module, "tqdm", Bar)
    with pytest.raises(KeyboardInterrupt):
        get(server, tmp_path)
    (size,) = seen
    assert size < len(FILES[final.name]), "the interrupt must come in the middle of a file"
    assert content(tmp_path) == {name: FILES[name] for name in list(FILES)[:2]}

    monkeypatch.undo()
    server.requests.clear()
    get(server, tmp_path)
    assert server.requests == [final.name]
    assert content(tmp_path) == FILES


@pytest.mark.parametrize("name", ["quora-dev.csv", "last.csv"])
def test_another_file_of_the_name_is_kept(server, tmp_path, name):
    (tmp_path / name).write_bytes(b"mine\n")
    message = refusal(server, tmp_path)
    assert message.startswith(f"{tmp_path / name}: ")
    assert "move it away" in message
    assert server.requests == []
    assert content(tmp_path) == {name: b"mine\n"}


def test_a_folder_of_the_name_is_refused(server, tmp_path):
    (tmp_path / "last.csv").mkdir()
    assert "found Is a directory;" in refusal(server, tmp_path)
    assert server.requests == []


def test_a_file_in_place_of_the_folder_is_refused(server, tmp_path):
    (tmp_path / "file").write_bytes(b"mine\n")
    assert "cannot be written (Not a directory)" in refusal(server, tmp_path / "file")
    assert content(tmp_path) == {"file": b"mine\n"}


@pytest.fixture
def read_only_folder():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o555)
        is_root = os.geteuid() == 0  # to whom no folder is read-only
        if is_root:
            os.seteuid(65534)
        yield folder
        if is_root:
            os.seteuid(0)
        folder.chmod(0o755)


def test_a_read_only_folder_is_refused_before_any_download(server, read_only_folder):
    message = refusal(server, read_only_folder)
    assert message.startswith(f"{read_only_folder / 'first.csv'}: cannot be written")
    assert "Permission denied" in message
    assert server.requests == []


def test_a_full_disk_leaves_nothing(server, tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.move", full)
    assert "cannot be written (No space left on device)" in refusal(server, tmp_path)
    assert content(tmp_path) == {}


def test_the_bar_shows_each_file_and_its_size(server, tmp_path, monkeypatch):
    totals = {}

    class Bar(tqdm):
        def close(self):
            totals[self.desc] = (self.n, self.total)
            super().close()

    def shown(**arguments):
        assert arguments.pop("disable") is None  # only where stderr is a terminal
        return Bar(disable=False, file=output, **arguments)

    monkeypatch.setattr(fetch_module, "tqdm", shown)
    with (tmp_path / "stderr").open("w") as output:
        fetch(tmp_path / "data", base_url=server.url, registry=FAKE_REGISTRY)
    assert totals == {name: (len(content), len(content)) for name, content in FILES.items()}


def test_nothing_is_printed_without_a_terminal(server, tmp_path, capfd):
    log = logging.StreamHandler(sys.stderr)  # pooch's own is bound to the stderr of its import
    pooch.get_logger().addHandler(log)
    fetch(tmp_path, base_url=server.url, registry=FAKE_REGISTRY)
    pooch.get_logger().removeHandler(log)
    assert capfd.readouterr() == ("", "")


def test_describe_says_what_was_checked(server, tmp_path):
    get(server, tmp_path)
    size = len(FILES["quora-dev.csv"])
    unchecked = describe(tmp_path / "quora-dev.csv", FAKE_REGISTRY)
    assert unchecked.startswith(
        f"{tmp_path / 'quora-dev.csv'}: 2 lines below the header, {size} bytes, NOT checked"
    )
    checked = describe(tmp_path / "first.csv", FAKE_REGISTRY)
    assert (
        checked
        == f"{tmp_path / 'first.csv'}: 1 lines below the header, 18 bytes, SHA-256 as published"
    )


def test_the_registry_has_every_file_of_every_task():
    assert list(REGISTRY) == [name for task in TASKS.values() for name in task.files.values()]
    unknown = {name for name, sha256 in REGISTRY.items() if sha256 is None}
    assert unknown == set(TASKS["quora"].files.values())
    assert BASE_URL.startswith("https://")


@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not here")
def test_the_hashes_are_those_of_the_published_files():
    for name, sha256 in REGISTRY.items():
        if sha256 is not None:
            assert hashlib.sha256((DATA / name).read_bytes()).hexdigest() == sha256, name
