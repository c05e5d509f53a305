"""Pushes that break off, on a Hub that is served here: after the same again all is as if nothing had happened."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
from hub import HubServer

from kcelectra.errors import InputError
from kcelectra.hub import HubUnreachable, push_files

TOKEN = "hf_canaryThatMustNotSing"
NUM_FAULTS = 200
FAULTS = ["drop before", "drop after", "kill before", "kill after", 429, 500, 502, 503, 504, "expired"]
COMMIT, TAG, CREATE, INFO = "/commit/main", "/tag/", "/api/repos/create", "GET /api/models/"
YAML, MODES, BATCH, STORE = "/api/validate-yaml", "/preupload/main", "/objects/batch", "PUT /storage/"

# Each line is a push in a process of its own, which begins when the next line comes, and waits for nothing.
DRIVER = """
import json, os, sys, time, traceback
from pathlib import Path
from kcelectra.errors import InputError
from kcelectra.hub import HubUnreachable, push_files

def push(repo_id, directory):
    root, waits = Path(directory), []
    time.sleep = waits.append
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    try:
        commit = push_files(files, roots=[root], repo_id=repo_id, message="All", owned=["generator/*"], tag="v1")
        return {"commit": commit.oid, "waits": waits}
    except InputError as error:
        return {"error": str(error), "unreachable": isinstance(error, HubUnreachable), "waits": waits}
    except Exception:
        return {"traceback": traceback.format_exc()}

for line in iter(sys.stdin.readline, ""):
    pid = os.fork()
    if pid == 0:
        sys.stdin.readline()
        print(json.dumps(push(*json.loads(line))), flush=True)
        os._exit(0)
    print(pid, flush=True)
    os.waitpid(pid, 0)
    print("end", flush=True)
"""


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


class Client:
    """Pushes with `push_files`, one process a push, to a Hub where things go wrong."""

    def __init__(self, hub: HubServer, process: subprocess.Popen, files: Path, earlier: Path):
        self.hub, self.process, self.files, self.earlier = hub, process, files, earlier
        self.num_repositories = 0

    def make_repository(self, *, is_new: bool) -> str:
        """Return a name on which nothing is, or a private repository with an earlier push."""
        self.num_repositories += 1
        repo_id = f"someone/kc-{self.num_repositories}"
        if not is_new:
            shutil.copytree(self.earlier, self.hub.root / "models" / repo_id / "main")
            self.hub.private.add(repo_id)
        self.hub.watch(f"models/{repo_id}")
        return repo_id

    def push(self, repo_id: str, *, fault=None, at: Iterable[int] = (), expired=None) -> SimpleNamespace:
        """Push, with a fault at some requests; what the client says is empty if it was killed."""
        start = len(self.hub.calls)
        self._write([repo_id, str(self.files)])
        self.hub.victim = int(self.process.stdout.readline())
        self.hub.break_at(dict.fromkeys(at, fault), expired=expired)
        self._write("go")
        said = {} if (line := self.process.stdout.readline()) == "end\n" else json.loads(line)
        if said:
            assert self.process.stdout.readline() == "end\n"
        assert "traceback" not in said, said["traceback"]
        return SimpleNamespace(**said, said=said, calls=self.hub.calls[start:])

    def _write(self, line) -> None:
        self.process.stdin.write(json.dumps(line) + "\n")
        self.process.stdin.flush()


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    directory = tmp_path_factory.mktemp("faults")
    random = Random(0)
    files, earlier = directory / "files", directory / "earlier"
    for root, step in ((files, 2), (earlier, 1)):
        for name in ("model.safetensors", "generator/model.safetensors", "plots/loss.png"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(random.randbytes(4000))
        (root / "README.md").write_text(f"---\nlicense: mit\n---\n# Step {step}\n")
        (root / "config.json").write_text(json.dumps({"model_type": "electra", "step": step}))
    (earlier / "generator" / "vocab.txt").write_text("of an earlier push")
    (earlier / ".gitattributes").write_text("")
    with HubServer(directory / "hub", users={TOKEN: "someone"}) as hub:
        environment = hub.client_env(directory / "home", TOKEN)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with open(directory / "log", "w+") as log:
            process = subprocess.Popen([sys.executable, "-c", DRIVER], env=environment, stderr=log, **pipes)
            yield Client(hub, process, files, earlier)
            process.stdin.close()
            process.wait(timeout=60)
            process.stdout.close()
            log.seek(0)
            assert TOKEN not in log.read()


@pytest.fixture(scope="module")
def undisturbed(client):
    """What a push makes of nothing and of an earlier push, and the requests it takes."""
    pushes = {}
    for is_new in (True, False):
        repo_id = client.make_repository(is_new=is_new)
        pushed = client.push(repo_id)
        main = client.hub.root / "models" / repo_id / "main"
        assert contents(main).items() >= contents(client.files).items()
        pushes[is_new] = SimpleNamespace(
            calls=pushed.calls, contents=contents(main), commit=pushed.commit, moments=set(client.hub.moments)
        )
        assert len(client.hub.moments) == 2  # none, then all
    return pushes


def place(undisturbed, request: str, is_new: bool) -> int:
    return next(number for number, call in enumerate(undisturbed[is_new].calls) if request in call)


def push_through(client, undisturbed, *, is_new: bool, fault, at: int) -> str:
    """Push with a fault, then again without, and return what became of the first try."""
    hub, expected = client.hub, undisturbed[is_new]
    repo_id = client.make_repository(is_new=is_new)
    num_commits = len(hub.commits)
    faults = {"expired": at} if fault == "expired" else {"fault": fault, "at": [at]}
    first = client.push(repo_id, **faults)
    if "error" in first.said:
        assert first.error.startswith(f"cannot push to {repo_id}: ") and "type the same again" in first.error
    assert hub.moments <= expected.moments
    stored = set(hub.objects)
    second = client.push(repo_id)
    assert second.said == {"commit": expected.commit, "waits": []}
    assert not [call for call in second.calls if call.removeprefix(STORE) in stored]
    assert hub.moments <= expected.moments
    for revision in ("main", "v1"):
        assert contents(hub.root / "models" / repo_id / revision) == expected.contents
    assert len(hub.commits) == num_commits + 1  # neither lost nor made twice
    return "refused" if "error" in first.said else "pushed" if first.said else "killed"


@pytest.mark.parametrize(
    ("fault", "request_path", "is_new", "outcome"),
    [
        ("drop before", CREATE, True, "pushed"),
        ("drop after", CREATE, True, "pushed"),
        ("drop after", COMMIT, False, "pushed"),
        ("kill after", COMMIT, False, "killed"),
        ("kill before", COMMIT, True, "killed"),
        ("kill after", STORE, False, "killed"),
        ("drop after", TAG, True, "pushed"),
        ("expired", COMMIT, False, "refused"),
        ("expired", STORE, True, "refused"),
        (429, INFO, False, "pushed"),
        (502, YAML, True, "pushed"),
        (503, COMMIT, False, "pushed"),
        (504, BATCH, False, "pushed"),
        ("drop before", MODES, True, "pushed"),
    ],
)
def test_a_push_that_broke_off_is_whole_after_the_same_again_and_never_half(
    client, undisturbed, fault, request_path, is_new, outcome
):
    at = place(undisturbed, request_path, is_new)
    assert push_through(client, undisturbed, is_new=is_new, fault=fault, at=at) == outcome


@pytest.mark.slow
def test_two_hundred_random_faults_leave_what_an_undisturbed_push_does(client, undisturbed):
    random, outcomes = Random(2022), Counter()
    for _ in range(NUM_FAULTS):
        is_new, fault = random.random() < 0.5, random.choice(FAULTS)
        at = random.randrange(len(undisturbed[is_new].calls))
        outcomes[fault, push_through(client, undisturbed, is_new=is_new, fault=fault, at=at)] += 1
    assert sum(outcomes.values()) == NUM_FAULTS
    kinds = {"kill before": "killed", "kill after": "killed", "expired": "refused"}
    assert outcomes.keys() == {(fault, kinds.get(fault, "pushed")) for fault in FAULTS}


def test_a_busy_hub_is_given_the_time_that_it_asks_for(client, undisturbed):
    repo_id = client.make_repository(is_new=False)
    pushed = client.push(repo_id, fault=429, at=[place(undisturbed, COMMIT, False)])
    assert pushed.waits == [3]  # its Retry-After; one second otherwise


def test_a_hub_that_stays_down_is_named_after_a_few_tries(client, undisturbed):
    repo_id = client.make_repository(is_new=False)
    pushed = client.push(repo_id, fault=503, at=range(1000))
    assert pushed.unreachable and pushed.waits == [1, 2, 4, 8]
    assert "503" in pushed.error and "type the same again later" in pushed.error


@pytest.mark.parametrize("request_path", [COMMIT, STORE])
@pytest.mark.parametrize("status", [401, 403, 409])
def test_a_refusal_is_not_tried_again_and_says_how_to_log_in(client, undisturbed, status, request_path):
    repo_id = client.make_repository(is_new=False)
    pushed = client.push(repo_id, fault=status, at=[place(undisturbed, request_path, False)])
    assert not pushed.unreachable and pushed.waits == []
    assert str(status) in pushed.error and "`hf auth login`" in pushed.error
    assert len([call for call in pushed.calls if CREATE in call]) == 1


def test_a_commit_of_somebody_else_in_between_is_not_mixed_with_ours(client, undisturbed, monkeypatch):
    """Theirs comes when ours is ready to be sent: ours is made again, upon theirs."""
    repo_id = client.make_repository(is_new=False)
    main = client.hub.root / "models" / repo_id / "main"
    commit, theirs = client.hub.commit, [main / "generator" / "theirs.txt"]

    def commit_after_theirs(*arguments):
        while theirs:
            theirs.pop().write_text("of somebody else")
        return commit(*arguments)

    monkeypatch.setattr(client.hub, "commit", commit_after_theirs)
    pushed = client.push(repo_id)
    assert pushed.waits == [1] and pushed.commit == undisturbed[False].commit
    assert contents(main) == undisturbed[False].contents  # theirs was below generator/, which is ours


def test_a_tag_that_names_another_commit_is_refused_before_anything_is_sent(client, undisturbed):
    repo_id = client.make_repository(is_new=False)
    shutil.copytree(client.earlier, client.hub.root / "models" / repo_id / "v1")
    (client.hub.root / "models" / repo_id / "v1" / "config.json").write_text("{}")
    pushed = client.push(repo_id)
    assert f"v1 of {repo_id} names another commit" in pushed.error
    assert contents(client.hub.root / "models" / repo_id / "main") == contents(client.earlier)


def test_a_gitignore_in_the_repository_is_refused(client):
    repo_id = client.make_repository(is_new=False)
    (client.hub.root / "models" / repo_id / "main" / ".gitignore").write_text("*.json")
    assert "has a .gitignore" in client.push(repo_id).error


def test_a_machine_that_is_offline_by_choice_is_told_so_at_once():
    with pytest.raises(InputError, match="offline mode is enabled") as error:
        push_files({"README.md": b"text"}, roots=[], repo_id="someone/kc", message="All")
    assert not isinstance(error.value, HubUnreachable)


def test_nothing_but_the_hub_was_asked_and_the_token_is_nowhere(client, undisturbed):
    assert client.hub.unknown == []
    assert TOKEN not in json.dumps(client.hub.commits) + "".join(client.hub.calls)
    assert not [name for name, content in contents(client.hub.root).items() if TOKEN.encode() in content]
    assert not os.path.exists(client.hub.root.parent / "home" / "token")
