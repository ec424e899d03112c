"""Locating, downloading and checking published files, against a real server on the loopback interface."""

from __future__ import annotations

import gzip
import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cfptq import datasets
from cfptq.datasets import PublishedFile, Source, published_files
from cfptq.errors import FileError

CONTENT = b"age,label\n" + b"39,1\n" * 20_000


@dataclass
class Server:
    """What is served at each path, and how many bytes are promised in Content-Length (its length by default)."""

    url: str = ""
    pages: dict[str, bytes] = field(default_factory=dict)
    promised: dict[str, int | None] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def source(self, path: str, *members: str) -> Source:
        return Source(self.url + path, members)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    served = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.asked.append(self.path)
            if self.path not in served.pages:
                self.send_error(404)
                return
            body = served.pages[self.path]
            promised = served.promised.get(self.path, len(body))
            self.send_response(200)
            if promised is not None:
                self.send_header("Content-Length", str(promised))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    monkeypatch.setenv("no_proxy", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        served.url = f"http://127.0.0.1:{http.server_address[1]}"
        yield served
        http.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test's own, and no folder of data sets."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(published_files.DATA_DIR_VARIABLE, raising=False)
    return tmp_path / "cache" / "cfptq" / "data"


def published(*sources: Source, content: bytes = CONTENT) -> PublishedFile:
    return PublishedFile(
        "people", "people.csv", len(content), hashlib.sha256(content).hexdigest(), sources or (Source("https://example.org/people.csv"),)
    )


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def everything_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []


# On disk


@pytest.mark.parametrize("place", ["people/people.csv", "people.csv", "people/people.csv.gz", "people.csv.gz"])
def test_a_file_is_found_plain_or_gzipped_in_its_own_folder_or_the_one_above(tmp_path: Path, place: str) -> None:
    path = tmp_path / "mine" / place
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress(CONTENT) if place.endswith(".gz") else CONTENT)
    assert published_files.find_file(published(), tmp_path / "mine") == path
    assert published_files.read_file(published(), data_dir=tmp_path / "mine", download=False) == CONTENT


def test_the_environment_names_the_folder_and_an_argument_overrules_it(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(published_files.DATA_DIR_VARIABLE, str(tmp_path / "mine"))
    assert published_files.list_search_folders() == (tmp_path / "mine", cache)
    assert published_files.list_search_folders(tmp_path / "other") == (tmp_path / "other", cache)


def test_the_users_folder_comes_before_the_cache(tmp_path: Path, cache: Path) -> None:
    for folder in (tmp_path / "mine", cache / "people"):
        folder.mkdir(parents=True)
        (folder / "people.csv").write_bytes(CONTENT)
    assert published_files.find_file(published(), tmp_path / "mine") == tmp_path / "mine" / "people.csv"
    assert published_files.find_file(published(), tmp_path / "nothing here") == cache / "people" / "people.csv"


def test_a_missing_file_says_which_from_where_and_how_to_point_at_it(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(FileError) as caught:
        published_files.read_file(published(), data_dir=tmp_path / "mine", download=False)
    message = str(caught.value)
    for part in (
        "people.csv",
        "'people'",
        str(tmp_path / "mine"),
        str(cache),
        "https://example.org/people.csv",
        "CFPTQ_DATA_DIR",
        "download=True",
    ):
        assert part in message


@pytest.mark.parametrize("damage", [CONTENT[:-1], CONTENT + b"\n", b"", b"x" + CONTENT[1:]], ids=["cut", "longer", "empty", "changed"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_copy_with_other_bytes_is_refused_with_both_checksums(tmp_path: Path, damage: bytes, packed: bool) -> None:
    path = tmp_path / ("people.csv.gz" if packed else "people.csv")
    path.write_bytes(gzip.compress(damage) if packed else damage)
    with pytest.raises(FileError, match=published().sha256) as caught:
        published_files.read_file(published(), data_dir=tmp_path)
    assert str(path) in str(caught.value)


def test_a_gzip_file_that_is_cut_off_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "people.csv.gz").write_bytes(gzip.compress(CONTENT)[:-20])
    with pytest.raises(FileError, match=r"people\.csv\.gz"):
        published_files.read_file(published(), data_dir=tmp_path)


# From the network


def test_a_complete_download_lands_in_the_cache_and_is_not_asked_for_again(server: Server, cache: Path) -> None:
    server.pages["/people.csv"] = CONTENT
    file = published(server.source("/people.csv"))
    assert published_files.read_file(file) == CONTENT
    assert everything_below(cache) == [cache / "people" / "people.csv"]
    assert published_files.read_file(file, download=False) == CONTENT
    assert server.asked == ["/people.csv"]


def test_downloading_a_data_set_fetches_only_what_is_missing(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.pages["/people.csv"] = CONTENT
    file = published(server.source("/people.csv"))
    monkeypatch.setattr(datasets, "list_files", lambda name: (file,))
    assert datasets.locate("people") == {"people.csv": None}
    datasets.download("people")
    datasets.download("people")
    assert datasets.locate("people") == {"people.csv": cache / "people" / "people.csv"}
    assert server.asked == ["/people.csv"]


def test_without_leave_nothing_is_asked_for(server: Server) -> None:
    server.pages["/people.csv"] = CONTENT
    with pytest.raises(FileError, match="download=True"):
        published_files.read_file(published(server.source("/people.csv")), download=False)
    assert server.asked == []


@pytest.mark.parametrize(
    ("body", "promised", "complaint"),
    [
        (CONTENT[:50_000], len(CONTENT), "cut off|IncompleteRead"),
        (CONTENT[:50_000], None, "SHA-256"),
        (CONTENT[:-1] + b"x", len(CONTENT), "SHA-256"),
        (CONTENT + b"more", None, "more than"),
        (b"", 0, "SHA-256"),
    ],
    ids=["cut off", "cut off, no length", "other bytes", "too long", "empty"],
)
def test_a_bad_download_leaves_nothing_behind(server: Server, cache: Path, body: bytes, promised: int | None, complaint: str) -> None:
    server.pages["/people.csv"] = body
    server.promised["/people.csv"] = promised
    with pytest.raises(FileError, match=complaint):
        published_files.read_file(published(server.source("/people.csv")))
    assert everything_below(cache) == []


def test_a_page_that_is_not_there_says_so(server: Server, cache: Path) -> None:
    with pytest.raises(FileError, match=r"404.*") as caught:
        published_files.read_file(published(server.source("/gone.csv")))
    assert "CFPTQ_DATA_DIR" in str(caught.value)
    assert everything_below(cache) == []


def test_a_server_that_does_not_answer_says_so(server: Server) -> None:
    file = published(Source("http://127.0.0.1:9/people.csv"))
    with pytest.raises(FileError, match=r"127\.0\.0\.1:9"):
        published_files.read_file(file)


def test_a_local_address_is_no_download(tmp_path: Path) -> None:
    (tmp_path / "people.csv").write_bytes(CONTENT)
    with pytest.raises(FileError, match="must begin with https"):
        published_files.read_file(published(Source((tmp_path / "people.csv").as_uri())))


def test_the_next_source_is_asked_where_the_first_fails(server: Server, cache: Path) -> None:
    server.pages["/changed.csv"] = CONTENT.replace(b"39", b"40")
    server.pages["/copy.csv"] = CONTENT
    sources = [server.source(path) for path in ("/gone.csv", "/changed.csv", "/copy.csv")]
    assert published_files.read_file(published(*sources)) == CONTENT
    assert everything_below(cache) == [cache / "people" / "people.csv"]


def test_a_file_is_taken_out_of_nested_archives(server: Server, cache: Path) -> None:
    server.pages["/all.zip"] = zipped(**{"inner.zip": zipped(**{"people.csv": CONTENT, "readme": b"?"}), "other.zip": b"?"})
    assert published_files.read_file(published(server.source("/all.zip", "inner.zip", "people.csv"))) == CONTENT
    assert everything_below(cache) == [cache / "people" / "people.csv"]


def test_names_in_an_archive_never_become_paths(server: Server, tmp_path: Path, cache: Path) -> None:
    server.pages["/all.zip"] = zipped(**{"../../../../escaped.csv": b"!", "/tmp/escaped.csv": b"!", "../people.csv": CONTENT})
    assert published_files.read_file(published(server.source("/all.zip", "../people.csv"))) == CONTENT
    assert everything_below(tmp_path) == [cache / "people" / "people.csv"]


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        (zipped(**{"others.csv": CONTENT}), "no readable people.csv"),
        (zipped(**{"people.csv": CONTENT})[:-30], "no readable people.csv"),
        (b"<html>moved</html>", "no readable people.csv"),
        (zipped(**{"people.csv": b"0" * 50_000_000}), "longer than"),
        (zipped(**{"people.csv": CONTENT[:-1] + b"x"}), "SHA-256"),
    ],
    ids=["member missing", "cut off", "no archive", "bomb", "other bytes"],
)
def test_a_bad_archive_leaves_nothing_behind(server: Server, cache: Path, page: bytes, complaint: str) -> None:
    server.pages["/all.zip"] = page
    with pytest.raises(FileError, match=complaint):
        published_files.read_file(published(server.source("/all.zip", "people.csv")))
    assert everything_below(cache) == []


def test_an_archive_that_never_ends_is_given_up(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published_files, "MAX_ARCHIVE_BYTES", 100_000)
    server.pages["/all.zip"] = bytes(300_000)
    server.promised["/all.zip"] = None
    with pytest.raises(FileError, match="more than the 100000 bytes"):
        published_files.read_file(published(server.source("/all.zip", "people.csv")))
    assert everything_below(cache) == []


def test_a_cache_that_cannot_be_written_is_an_error_that_names_it(server: Server, tmp_path: Path) -> None:
    server.pages["/people.csv"] = CONTENT
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(FileError, match="CFPTQ_DATA_DIR"):
        published_files.read_file(published(server.source("/people.csv")))
