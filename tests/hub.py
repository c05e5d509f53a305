"""A read-only Hugging Face Hub on 127.0.0.1, for clients that must not know that it is not the real one."""

import hashlib
import json
import os
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit

INFO = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/revision/([^/]+))?")
TREE = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)/tree/([^/]+)(?:/(.+))?")
RESOLVE = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class HubServer:
    """Serves the repositories `root/{models,datasets}/OWNER/NAME/REVISION/` while the `with` block lasts.

    A revision goes by the name of its directory and by its commit, a hash of its files.

    Attributes:
        calls: requests, in the order of their arrival, as "METHOD path?query".
        unknown: those that no endpoint stands for; a test that expects none asserts that.
    """

    def __init__(self, root: Path):
        self.root = root
        self.calls: list[str] = []
        self.unknown: list[str] = []

    def __enter__(self):
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def client_env(self, home: Path) -> dict[str, str]:
        """Return the environment of a client of this Hub alone; its libraries read it when they are imported."""
        inherited = {
            k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")
        }
        switches = ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_UPDATE_CHECK", "HF_HUB_DISABLE_XET")
        return inherited | {
            **dict.fromkeys(switches, "1"),
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # telemetry too: `datasets` tells s3.amazonaws.com what it opens
            "HF_ENDPOINT": f"http://127.0.0.1:{self._server.server_port}",
            "HF_HOME": str(home),
            "NO_PROXY": "127.0.0.1",
        }

    def find(self, kind: str, name: str, revision: str) -> tuple[Path, str] | str:
        """Return the directory and the commit of a revision, or the Hub's code for what is missing."""
        repository = self.root / kind / name
        if not repository.is_dir():
            return "RepoNotFound"
        for directory in repository.iterdir():
            commit = _commit(directory)
            if revision in (directory.name, commit):
                return directory, commit
        return "RevisionNotFound"


def _files(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


def _hash(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


def _commit(directory: Path) -> str:
    contents = "".join(f"{name}\0{_hash(directory / name)}\n" for name in _files(directory))
    return hashlib.sha1(contents.encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes: 40 ms a request otherwise

    def do_GET(self):
        url = urlsplit(self.path)
        self.hub.calls.append(f"{self.command} {self.path}")
        if self.command not in ("GET", "HEAD"):
            self.close_connection = True  # nobody reads the body
            self._fail("UnknownEndpoint")
        elif match := RESOLVE.fullmatch(url.path):
            self._answer(self._send_file, *match.groups(default="models"))
        elif match := INFO.fullmatch(url.path):
            self._answer(self._send_info, *match.groups(default="main"))
        elif match := TREE.fullmatch(url.path):
            self._recursive = parse_qs(url.query).get("recursive", [""])[0].lower() == "true"
            self._answer(self._send_tree, *match.groups(default=""))
        else:
            self._fail("UnknownEndpoint")

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, *arguments):
        pass  # `HubServer.calls` is the log

    def _answer(self, send, kind, name, revision, path=""):
        found = self.hub.find(kind, name, unquote(revision))
        if isinstance(found, str):
            return self._fail(found)
        directory, commit = found
        target = (directory / unquote(path)).resolve()
        is_there = target.is_file() if send == self._send_file else target.is_dir()
        if not is_there or not target.is_relative_to(directory.resolve()):
            return self._fail("EntryNotFound", {"X-Repo-Commit": commit})
        send(target, directory.resolve(), {"X-Repo-Commit": commit})

    def _send_file(self, path, directory, headers):
        body, headers = path.read_bytes(), {**headers, "ETag": f'"{_hash(path)}"', "Accept-Ranges": "bytes"}
        if part := RANGE.fullmatch(self.headers.get("Range", "")):
            start, size = int(part[1]), len(body)
            body = body[start : int(part[2]) + 1 if part[2] else None]
            headers["Content-Range"] = f"bytes {start}-{start + len(body) - 1}/{size}"
        self._send(206 if part else 200, body, headers)

    def _send_info(self, path, directory, headers):
        siblings = [{"rfilename": name} for name in _files(directory)]
        name = f"{directory.parent.parent.name}/{directory.parent.name}"
        info = {"id": name, "sha": headers["X-Repo-Commit"], "siblings": siblings}
        self._send(200, json.dumps(info).encode(), headers)

    def _send_tree(self, path, directory, headers):
        entries = []
        for child in sorted(path.rglob("*") if self._recursive else path.iterdir()):
            is_file = child.is_file()
            entry = {"path": child.relative_to(directory).as_posix(), "type": "file" if is_file else "directory"}
            oid, size = (_hash(child), child.stat().st_size) if is_file else (_commit(child), 0)
            entries.append(entry | {"oid": oid, "size": size})
        self._send(200, json.dumps(entries).encode(), headers)

    def _fail(self, code, headers=()):
        call = f"{self.command} {self.path}"
        if code == "UnknownEndpoint":
            self.hub.unknown.append(call)
        self._send(404, call.encode(), {**dict(headers), "X-Error-Code": code, "X-Error-Message": f"{code}: {call}"})

    def _send(self, status, body, headers):
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
