"""A read-only Hugging Face Hub on 127.0.0.1, for clients that must not know that it is not the real one."""

import hashlib
import json
import os
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit

API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(?:/(.+))?)?")
RESOLVE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
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
        endpoint = f"http://127.0.0.1:{self._server.server_port}"
        return inherited | dict.fromkeys(switches, "1") | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home)}

    def find(self, kind: str, name: str, revision: str) -> tuple[Path, str] | str:
        """Return the directory and the commit of a revision, or the Hub's code for what is missing."""
        repository = self.root / kind / name
        if not repository.is_dir():
            return "RepoNotFound"
        commits = {path.name: commit_of(path) for path in sorted(repository.iterdir())}
        for branch, commit in commits.items():
            if revision in (branch, commit):
                return repository / branch, commit
        return "RevisionNotFound"


def commit_of(directory: Path) -> str:
    """Return 40 hexadecimal digits that change with any name or byte below the directory."""
    contents = hashlib.sha1()
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        contents.update(f"{path.relative_to(directory)}\0{_oid(path)}\n".encode())
    return contents.hexdigest()


def _oid(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes: 40 ms a request otherwise

    def do_GET(self):
        self.hub.calls.append(f"{self.command} {self.path}")
        url = urlsplit(self.path)
        if match := RESOLVE.fullmatch(url.path):
            kind, name, revision, path = match.groups()
            self._answer("datasets" if kind else "models", name, revision, path, self._send_file)
        elif match := API.fullmatch(url.path):
            kind, name, action, revision, path = match.groups()
            self._recursive = parse_qs(url.query).get("recursive", ["false"])[0].lower() == "true"
            send = self._send_tree if action == "tree" else self._send_info
            self._answer(kind, name, revision or "main", path or "", send)
        else:
            self.hub.unknown.append(self.hub.calls[-1])
            self._fail("UnknownEndpoint")

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, *arguments):
        pass  # `HubServer.calls` is the log

    def _answer(self, kind, name, revision, path, send):
        found = self.hub.find(kind, name, unquote(revision))
        if isinstance(found, str):
            return self._fail(found)
        directory, commit = found
        target = (directory / unquote(path)).resolve()
        if not target.exists() or not target.is_relative_to(directory.resolve()):
            return self._fail("EntryNotFound", commit)
        send(target, directory=directory, commit=commit, name=name)

    def _send_file(self, path, *, commit, **_):
        if not path.is_file():
            return self._fail("EntryNotFound", commit)
        body, headers = path.read_bytes(), {"ETag": f'"{_oid(path)}"', "Accept-Ranges": "bytes"}
        if part := RANGE.fullmatch(self.headers.get("Range", "")):
            start, size = int(part[1]), len(body)
            if start >= size:
                return self._send(416, b"", commit, {"Content-Range": f"bytes */{size}"})
            body = body[start : int(part[2]) + 1 if part[2] else None]
            return self._send(
                206, body, commit, {**headers, "Content-Range": f"bytes {start}-{start + len(body) - 1}/{size}"}
            )
        self._send(200, body, commit, headers)

    def _send_info(self, path, *, directory, commit, name):
        files = sorted(file.relative_to(directory).as_posix() for file in directory.rglob("*") if file.is_file())
        self._send_json({"id": name, "sha": commit, "siblings": [{"rfilename": file} for file in files]}, commit)

    def _send_tree(self, path, *, directory, commit, name):
        entries = []
        for file in sorted(path.rglob("*") if self._recursive else path.iterdir()):
            entry = {"path": file.relative_to(directory).as_posix()}
            if file.is_file():
                entries.append(entry | {"type": "file", "oid": _oid(file), "size": file.stat().st_size})
            else:
                entries.append(entry | {"type": "directory", "oid": commit_of(file), "size": 0})
        self._send_json(entries, commit)

    def _send_json(self, value, commit):
        self._send(200, json.dumps(value).encode(), commit, {"Content-Type": "application/json"})

    def _fail(self, code, commit=None):
        message = f"{code}: {self.command} {self.path}"
        self._send(404, message.encode(), commit, {"X-Error-Code": code, "X-Error-Message": message})

    def _send(self, status, body, commit, headers):
        self.send_response(status)
        repository = {"X-Repo-Commit": commit} if commit else {}
        for key, value in {**repository, **headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
