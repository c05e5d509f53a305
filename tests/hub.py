"""A Hugging Face Hub on 127.0.0.1, for clients that must not know that it is not the real one."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from signal import SIGKILL
from socket import SHUT_RDWR
from threading import Lock, Thread
from types import SimpleNamespace
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

INFO = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/revision/([^/]+))?")
TREE = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)/tree/([^/]+)(?:/(.+))?")
RESOLVE = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
RANGE = re.compile(r"bytes=(\d+)-(\d*)")
PREUPLOAD = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)/preupload/main")
COMMIT = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)/commit/main")
TAG = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)/tag/([^/]+)")
SETTINGS = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)/settings")
BATCH = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch")
STORAGE = re.compile(r"/storage/([^/]+/[^/]+/[0-9a-f]{64})")
LARGE = ("*.parquet", "*.safetensors", "*.bin", "*.png")  # a few of those that the Hub tracks in a new repository
LICENSES = ("apache-2.0", "cc-by-4.0", "cc-by-sa-4.0", "cc0-1.0", "mit", "other", "unknown")  # a few of those it knows
MESSAGES = {
    "credentials": "Invalid username or password",
    "namespace": 'You don\'t have the rights to create a {kind} under the namespace "{owner}"',
    "branch": "You need to be authorized to push to {name}",
    "storage": "Storage limit reached",
    "exists": "You already created this {kind} repo",
    "pointer": "An LFS pointer pointed to a file that does not exist",
    "moved": "A commit has happened since. Please refresh and try again.",
    "fault": "a fault that the test asked for",
}
Fault = int | str  # a status, or what happens to the client
BEFORE, AFTER = ("drop before", "kill before"), ("drop after", "kill after")


class HubServer:
    """Serves the repositories `root/{models,datasets}/OWNER/NAME/REVISION/` while the `with` block lasts.

    A revision goes by the name of its directory and by its commit, a hash of its files. What is pushed becomes `main`,
    and what was there before stays under its hash.

    Args:
        root: where the repositories are.
        users: who may push to their own namespace, by token; everybody may read what is not private.

    Attributes:
        faults: what goes wrong, by the number of the request counted from `break_at`: a status that is answered in
            place of the Hub's, with "Retry-After: 3" if it is 429; or the connection is dropped, or the client killed,
            "before" the request is handled or "after", when all is done but nothing answered.
        expired: from which request on no token is known any more.
        victim: the process to be killed.
        moments: every commit that main of the repository which is watched was at.
        calls: requests, in the order of their arrival, as "METHOD path?query".
        unknown: those that no endpoint stands for; a test that expects none asserts that.
        commits: what was pushed, as {"repository", "summary", "added", "deleted", "large"}: names of files.
        private: "OWNER/NAME" of the repositories that were created as private.
        full: paths where nothing can be written for want of space.
    """

    def __init__(self, root: Path, users: dict[str, str] | None = None):
        self.root = root
        self.users = users or {}
        self.calls: list[str] = []
        self.unknown: list[str] = []
        self.commits: list[dict] = []
        self.private: set[str] = set()
        self.full: list[str] = []
        self.objects: dict[str, bytes] = {}  # large files, by "OWNER/NAME/sha256"
        self.lock = Lock()
        self.victim: int | None = None
        self.watched = ""
        self.moments: set[str] = set()
        self.break_at({})

    def __enter__(self):
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def client_env(self, home: Path, token: str | None = None) -> dict[str, str]:
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
            **({"HF_TOKEN": token} if token else {}),
        }

    def break_at(self, faults: dict[int, Fault], *, expired: int | None = None) -> None:
        """Let the requests from now on go wrong as `faults` and `expired` say."""
        self.faults, self.expired, self._num_requests = faults, expired, 0

    def next_fault(self) -> Fault | None:
        """Return what happens to this request."""
        with self.lock:
            number = self._num_requests
            self._num_requests += 1
        if self.expired is not None and number >= self.expired:
            return 401
        return self.faults.get(number)

    def watch(self, repository: str) -> None:
        """Look at main of "models/OWNER/NAME" after each request from now on; `moments` are the states it was in."""
        with self.lock:
            self.watched, self.moments = repository, set()

    def look(self) -> None:
        with self.lock:
            main = self.root / self.watched / "main"
            if self.watched and main.is_dir():
                self.moments.add(_commit(main))

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

    def commit(self, kind: str, name: str, operations: list[dict]) -> str:
        """Do the operations of a commit on main, all or none, and return its hash or the Hub's code for an error."""
        main = self.root / kind / name / "main"
        if operations[0]["value"].get("parentCommit") not in (None, _commit(main)):
            return "moved"
        added, deleted = {}, []
        for operation in operations[1:]:
            key, value = operation["key"], operation["value"]
            if key == "file":
                added[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile" and (large := self.objects.get(f"{name}/{value['oid']}")):
                added[value["path"]] = large
            elif key == "deletedFile" and (main / value["path"]).is_file():
                deleted.append(value["path"])
            else:
                return "pointer" if key == "lfsFile" else "EntryNotFound"
        before = main.with_name(_commit(main))
        if not before.exists():
            shutil.copytree(main, before)
        for path in deleted:
            (main / path).unlink()
        for path, content in added.items():
            (main / path).parent.mkdir(parents=True, exist_ok=True)
            (main / path).write_bytes(content)
        names = {"added": sorted(added), "deleted": sorted(deleted)}
        names["large"] = sorted(line["value"]["path"] for line in operations if line["key"] == "lfsFile")
        self.commits.append({"repository": name, "summary": operations[0]["value"]["summary"], **names})
        return _commit(main)


def _files(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


def _hash(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


def _object_id(path: Path) -> str:
    """Return what a client compares with its own file: git's hash, or of a large file the sha256."""
    content = path.read_bytes()
    if _is_large(path.name):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()


def _is_large(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in LARGE)


def _commit(directory: Path) -> str:
    contents = "".join(f"{name}\0{_hash(directory / name)}\n" for name in _files(directory))
    return hashlib.sha1(contents.encode()).hexdigest()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):  # of a client that was killed
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes: 40 ms a request otherwise

    def do_GET(self):
        self._serve(self._read)

    do_HEAD = do_GET

    def do_POST(self):
        self._body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._serve(self._write)

    do_PUT = do_DELETE = do_POST

    def _serve(self, handle):
        self.hub.calls.append(f"{self.command} {self.path}")
        fault = self.hub.next_fault()
        if isinstance(fault, int):
            self._refuse(fault, "fault")
        elif fault in BEFORE:
            self._break(fault)
        elif fault in AFTER:
            self.wfile = BytesIO()  # nobody will read it
            handle()
            self._break(fault)
        else:
            handle()
        self.hub.look()

    def _break(self, fault):
        if fault.startswith("kill"):
            os.kill(self.hub.victim, SIGKILL)
        self.close_connection = True
        with suppress(OSError):  # of a client that is gone
            self.connection.shutdown(SHUT_RDWR)

    def _read(self):
        url = urlsplit(self.path)
        if match := RESOLVE.fullmatch(url.path):
            self._answer(self._send_file, *match.groups(default="models"))
        elif match := INFO.fullmatch(url.path):
            self._answer(self._send_info, *match.groups(default="main"))
        elif match := TREE.fullmatch(url.path):
            self._recursive = parse_qs(url.query).get("recursive", [""])[0].lower() == "true"
            self._answer(self._send_tree, *match.groups(default=""))
        else:
            self._fail("UnknownEndpoint")

    def _write(self):
        path = urlsplit(self.path).path
        pushes = {
            PREUPLOAD: self._choose_modes,
            BATCH: self._offer_storage,
            COMMIT: self._do_commit,
            TAG: self._tag,
            SETTINGS: self._change,
        }
        pushed = [(answer, match) for pattern, answer in pushes.items() if (match := pattern.fullmatch(path))]
        if path.startswith(tuple(self.hub.full)):
            self._refuse(403, "storage")
        elif path == "/api/repos/create":
            self._create(**json.loads(self._body))
        elif path == "/api/validate-yaml":
            self._validate(json.loads(self._body)["content"])
        elif match := STORAGE.fullmatch(path):
            self._store(match[1])
        elif pushed:
            answer, match = pushed[0]
            self._push(answer, *match.groups(default="models"))
        else:
            self._fail("UnknownEndpoint")

    def log_message(self, *arguments):
        pass  # `HubServer.calls` is the log

    def _answer(self, send, kind, name, revision, path=""):
        found = self.hub.find(kind, name, unquote(revision))
        if name in self.hub.private and self._user() != name.split("/")[0]:
            found = "RepoNotFound"
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

    def _user(self):
        return self.hub.users.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def _create(self, name, organization, type="model", visibility="public"):
        owner = organization or self._user()
        repository = self.hub.root / f"{type}s" / str(owner) / name
        facts = {"url": f"http://{self.headers['Host']}/{'' if type == 'model' else f'{type}s/'}{owner}/{name}"}
        if self._user() is None:
            self._refuse(401, "credentials")
        elif owner != self._user():
            self._refuse(403, "namespace", kind=type, owner=owner)
        elif repository.exists():
            self._send_json(409, facts | {"error": MESSAGES["exists"].format(kind=type)})
        else:
            (repository / "main").mkdir(parents=True)
            tracked = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LARGE)
            (repository / "main" / ".gitattributes").write_text(tracked)
            if visibility == "private":
                self.hub.private.add(f"{owner}/{name}")
            self._send_json(200, facts)

    def _validate(self, card):
        """Check of the metadata what the Hub checks of it first: that it is YAML, and names a licence it knows."""
        errors = []
        try:
            if yaml.safe_load(card.split("---\n")[1]).get("license", "unknown") not in LICENSES:
                errors.append({"message": f'"license" must be one of {list(LICENSES)}'})
        except yaml.YAMLError as error:
            errors.append({"message": str(error)})
        self._send_json(400 if errors else 200, {"errors": errors, "warnings": []})

    def _push(self, answer, kind, name, revision="main"):
        if self._user() is None:
            self._refuse(401, "credentials")
        elif self._user() != name.split("/")[0]:
            self._refuse(403, "branch", name=name)
        elif isinstance(found := self.hub.find(kind, name, revision), str):
            self._fail(found)
        else:
            answer(kind, name, found[0])

    def _choose_modes(self, kind, name, directory):
        files = []
        for file in json.loads(self._body)["files"]:
            there = directory / file["path"]
            mode = "lfs" if _is_large(there.name) else "regular"
            answer = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
            files.append(answer | ({"oid": _object_id(there)} if there.is_file() else {}))
        self._send_json(200, {"files": files})

    def _offer_storage(self, kind, name, directory):
        objects = json.loads(self._body)["objects"]
        for asked in objects:
            stored = f"{name}/{asked['oid']}"
            href = f"http://{self.headers['Host']}/storage/{stored}"
            if stored not in self.hub.objects:
                asked["actions"] = {"upload": {"href": href}, "verify": {"href": href}}
        self._send_json(200, {"transfer": "basic", "objects": objects})

    def _store(self, name):
        """Keep an object that is put, or say whether it is there."""
        if self.command == "POST":
            return self._send_json(200 if name in self.hub.objects else 404, {})
        if hashlib.sha256(self._body).hexdigest() != name.split("/")[-1]:
            return self._send_json(400, {"error": "BadDigest"})
        self.hub.objects[name] = self._body
        self._send_json(200, {})

    def _do_commit(self, kind, name, directory):
        with self.hub.lock:
            commit = self.hub.commit(kind, name, [json.loads(line) for line in self._body.splitlines()])
        if commit == "EntryNotFound":
            self._fail(commit)
        elif commit in MESSAGES:
            self._refuse(412 if commit == "moved" else 400, commit)
        else:
            url = f"http://{self.headers['Host']}/{kind}/{name}/commit/{commit}"
            self._send_json(200, {"success": True, "commitOid": commit, "commitUrl": url})

    def _tag(self, kind, name, directory):
        tag = directory.with_name(json.loads(self._body)["tag"])
        if tag.exists():
            return self._refuse(409, "exists", kind="tag")
        shutil.copytree(directory, tag)
        self._send_json(200, {})

    def _change(self, kind, name, directory):
        if json.loads(self._body)["visibility"] == "public":
            self.hub.private.discard(name)
        self._send_json(200, {})

    def _refuse(self, status, reason, **names):
        message = MESSAGES[reason].format(**names)
        headers = {"Retry-After": "3"} if status == 429 else {}
        self._send(status, json.dumps({"error": message}).encode(), {"X-Error-Message": message, **headers})

    def _send_json(self, status, facts):
        self._send(status, json.dumps(facts).encode(), {})

    def _send_info(self, path, directory, headers):
        siblings = [{"rfilename": name} for name in _files(directory)]
        name = f"{directory.parent.parent.name}/{directory.parent.name}"
        is_private = name in self.hub.private
        info = {"id": name, "sha": headers["X-Repo-Commit"], "siblings": siblings, "private": is_private}
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


_CLIENT = """
import json, sys

elsewhere = []

def guard(event, arguments):  # sees every look-up and connection of the interpreter before it happens
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host not in (None, "127.0.0.1"):
        elsewhere.append(host)
        raise OSError(f"refused: {host}")

sys.addaudithook(guard)
results = {}

def attempt(name, call):
    try:
        results[name] = call()
    except Exception as error:
        results[name] = f"{type(error).__module__}.{type(error).__name__}: {error}"
"""
_REPORT = """
print(json.dumps({"results": results, "elsewhere": elsewhere}))
"""


def run_client(
    program: str, *arguments: str, hub: HubServer, directory: Path, token: str | None = None
) -> SimpleNamespace:
    """Run a program in an interpreter that knows no Hub but this one, and return what it gave to `attempt`."""
    command = [sys.executable, "-c", _CLIENT + program + _REPORT, *arguments]
    environment = hub.client_env(directory / "home", token)
    finished = subprocess.run(command, env=environment, cwd=directory, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    report = json.loads(finished.stdout.splitlines()[-1])
    seen = {"calls": hub.calls, "unknown": hub.unknown, "directory": directory, "stderr": finished.stderr}
    return SimpleNamespace(**report, **seen)
