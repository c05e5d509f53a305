"""A run pushes its checkpoints to a Hub that is served here, and whoever has no `kcelectra` loads them from there."""

import json
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
from hub import HubServer, run_client
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForPreTraining, AutoTokenizer

from kcelectra.manifest import write_manifest
from kcelectra.outgoing import PICKLE, PICKLE_SUFFIXES
from kcelectra.pretraining.checkpoints import read_step
from kcelectra.tokenization import save_tokenizer

RECIPES = Path(__file__).parents[1] / "recipes"
TOKEN, LOGIN, BESIDE = "hf_canaryThatMustNotSing", "hf_loginCanaryMustNotSing", "hf_besideCanaryMustNotSing"
REPO, CORPUS = "beomi/KcELECTRA-base-v2022", "beomi/comments"
SENTENCE = "ㅋㅋㅋ 이 영화 진짜 재밌어요!! 😂"
SHORT = "--max_steps 4 --logging_steps 2 --save_steps 2 --per_device_train_batch_size 4 --max_length 64".split()
SHORT += ["--warmup_steps", "2", "--shuffle_window", "64", "--precision", "float32"]
PUSH = ["--push_to_hub", "true", "--hub_always_push", "true", "--hub_model_id", REPO, "--hub_private_repo", "false"]
HALF = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"}
MODEL = {".gitattributes", "README.md", "manifest.json", *HALF, *(f"generator/{name}" for name in HALF)}
HOSTILE = {
    "path": "tokenizer_config.json names '../../.env' as 'vocab_file'",
    "code": "config.json has 'auto_map'",
    "pickle": "pytorch_model.bin is a pickle",
    "secret": "vocab.txt holds a token of the Hub",
    "link": "vocab.txt is a link",
}

RUN_RECIPES = """
import contextlib, io, runpy, time, traceback
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_push_model import make_hostile

time.sleep = lambda seconds: None  # between the tries
for name, (script, words) in json.loads(sys.argv[1]).items():
    if name == "path":  # the first of them
        make_hostile(Path("out/smoke"), Path())
    sys.argv = [script, *words]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            runpy.run_path(script, run_name="__main__")
            status = 0
        except SystemExit as end:
            status = end.code
        except Exception:
            traceback.print_exc()
            status = 1
    results[name] = {"status": status, "out": out.getvalue(), "err": err.getvalue()}
"""

VISIT = """
sys.modules["kcelectra"] = None  # any import of it now fails
from datasets import load_dataset
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForPreTraining, AutoTokenizer

name, corpus, first = sys.argv[1:4]
ids, outputs = load_file(sys.argv[4])["ids"], {}

def load(key, loader, **where):
    model, info = loader.from_pretrained(name, output_loading_info=True, **where)
    outputs[key] = model.eval()(ids)[0].detach().contiguous()
    return sorted(info["missing_keys"])

def follow_the_card():
    from huggingface_hub import hf_hub_download
    with open(hf_hub_download(name, "README.md", revision=first), encoding="utf-8") as file:
        exec(file.read().split("```python")[1].split("```")[0], names := {})
    return [type(names[key]).__name__ for key in ("tokenizer", "model", "generator")]

attempt("encoder", lambda: load("encoder", AutoModel))
attempt("discriminator", lambda: load("discriminator", AutoModelForPreTraining))
attempt("generator", lambda: load("generator", AutoModelForMaskedLM, subfolder="generator"))
attempt("tag", lambda: load("tag", AutoModelForPreTraining, revision="v2022"))
attempt("first", lambda: load("first", AutoModelForPreTraining, revision=first))
attempt("tokenizer", lambda: AutoTokenizer.from_pretrained(name)(sys.argv[6])["input_ids"])
attempt("first card", follow_the_card)
attempt("corpus", lambda: list(load_dataset(corpus, split="train", streaming=True)))
save_file(outputs, sys.argv[5])
"""


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def publish(run_dir: str, repo_id: str, *words: str) -> tuple[str, list[str]]:
    options = ["--run_dir", run_dir, "--repo_id", repo_id, "--license", "mit"]
    return str(RECIPES / "publish.py"), [*options, *words]


def make_hostile(run_dir: Path, directory: Path) -> None:
    """Make runs whose manifests agree with their files, and each of which would publish what it must not."""
    configuration = json.loads((run_dir / "export/discriminator/tokenizer_config.json").read_text())
    changes = {
        "path": ("tokenizer_config.json", json.dumps({**configuration, "vocab_file": "../../.env"}).encode()),
        "code": ("config.json", b'{"model_type": "mine", "auto_map": {"AutoConfig": "configuration.Mine"}}'),
        "pickle": ("pytorch_model.bin", b"\x80\x04]q\x00."),
        "secret": ("vocab.txt", f"[PAD]\n{BESIDE}\n".encode()),
        "link": ("vocab.txt", None),
    }
    for name, (file, content) in changes.items():
        shutil.copytree(run_dir, directory / name)
        export_dir = directory / name / "export"
        (export_dir / "manifest.json").unlink()
        target = export_dir / "discriminator" / file
        if content is None:
            target.unlink()
            target.symlink_to(directory.absolute() / ".env")
        else:
            target.write_bytes(content)
        write_manifest(export_dir)
    (run_dir / "export/discriminator/notes.txt").write_text(BESIDE)  # which no manifest knows


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """Train and push, publish the run and its corpus, with secrets all around; then visit with an empty cache."""
    directory = tmp_path_factory.mktemp("pushed")
    (directory / "home").mkdir()
    (directory / "home" / "token").write_text(LOGIN)
    (directory / ".env").write_text(BESIDE)
    train = (str(RECIPES / "pretrain.py"), [*SHORT, *PUSH])
    runs = {
        "token": (train[0], [*SHORT, *PUSH, "--hub_token", BESIDE]),
        "no such argument": publish("out/smoke", REPO, f"--hf_token={BESIDE}"),
        "train": train,
        "train again": train,
        "dry run": publish("out/smoke", REPO, "--dry_run", "true"),
        "publish": publish("out/smoke", REPO, "--public", "true", "--revision", "v2022"),
        "build": (str(RECIPES / "build_corpus.py"), ["--sources", "out/smoke/sample/comments.jsonl"]),
        "corpus": (
            str(RECIPES / "publish.py"),
            ["--corpus_dir", "out/corpus", "--repo_id", CORPUS, "--license", "mit", "--public", "true"],
        ),
    }
    runs |= {name: publish(name, f"beomi/{name}") for name in HOSTILE}
    runs["beside"] = publish("out/smoke", "beomi/beside")
    with HubServer(directory / "hub", users={TOKEN: "beomi"}) as hub:
        words = [json.dumps(runs), str(Path(__file__).parent)]
        client = run_client(RUN_RECIPES, *words, hub=hub, directory=directory, token=TOKEN)
        repository = hub.root / "models" / REPO
        first = next(path.name for path in repository.iterdir() if "after 2 steps" in read_card(path))
        (directory / "visitor").mkdir()
        ids = torch.randint(5, 400, (2, 12), generator=torch.Generator().manual_seed(0))
        save_file({"ids": ids}, directory / "ids.safetensors")
        paths = [str(directory / name) for name in ("ids.safetensors", "outputs.safetensors")]
        visitor = run_client(VISIT, REPO, CORPUS, first, *paths, SENTENCE, hub=hub, directory=directory / "visitor")
    results = {name: SimpleNamespace(**result) for name, result in client.results.items()}
    for name in ("train", "train again", "dry run", "publish", "build", "corpus", "beside"):
        assert results[name].status == 0, results[name].err
    return SimpleNamespace(
        hub=hub,
        directory=directory,
        results=results,
        visitor=visitor,
        clients=(client, visitor),
        outputs=load_file(paths[1]),
        ids=ids,
        export=directory / "out/smoke/export",
        repository=repository,
        first=first,
    )


def read_card(directory: Path) -> str:
    path = directory / "README.md"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


# what is on the Hub


def test_the_root_is_the_discriminator_with_its_tokenizer_and_a_card(pushed):
    assert set(contents(pushed.repository / pushed.first)) == MODEL
    for half, prefix in (("discriminator", ""), ("generator", "generator/")):
        for name in HALF:
            published = (pushed.repository / "main" / f"{prefix}{name}").read_bytes()
            assert published == (pushed.export / half / name).read_bytes()


def test_each_save_and_each_recipe_is_one_commit_and_what_is_there_is_not_pushed_again(pushed):
    mine = [commit for commit in pushed.hub.commits if commit["repository"] == REPO]
    assert [commit["summary"] for commit in mine] == ["Step 2", "Step 4", "Add the model and its card"]
    assert "model.safetensors" in mine[1]["added"] and "vocab.txt" not in mine[1]["added"]
    assert "model.safetensors" not in mine[2]["added"]
    assert not any(commit["deleted"] for commit in mine)


def test_the_recipe_says_where_it_pushed_also_after_the_end(pushed):
    for run in ("train", "train again"):
        assert pushed.results[run].out.splitlines()[-1].startswith("pushed: http://127.0.0.1:")
    assert "has trained its 4 steps" in pushed.results["train again"].out


def test_publishing_adds_the_card_the_curves_and_the_log(pushed):
    added = set(contents(pushed.repository / "main")) - MODEL
    assert "history.json" in added and {name for name in added if name.endswith(".png")}
    card = read_card(pushed.repository / "main")
    assert "license: mit" in card and REPO in card and len(card) > 5000


def test_a_dry_run_lists_what_is_published_with_its_size_and_its_total(pushed):
    listed, published = (pushed.results[run].out.splitlines() for run in ("dry run", "publish"))
    assert listed[:-1] == published[:-1] and listed[-1].startswith("would be at ")
    main = contents(pushed.repository / "main")
    sizes = {name: int(size.replace(",", "")) for size, name in (line.split(maxsplit=1) for line in listed[:-2])}
    assert sizes == {name: len(content) for name, content in main.items() if name != ".gitattributes"}
    assert listed[-2].split() == [f"{sum(sizes.values()):,}", "bytes", "in", str(len(sizes)), "files"]


# what a visitor gets, without the package and with an empty cache


def test_a_visitor_gets_the_logits_of_the_export_bit_for_bit(pushed):
    expected = {
        "encoder": AutoModel.from_pretrained(pushed.export / "discriminator"),
        "discriminator": AutoModelForPreTraining.from_pretrained(pushed.export / "discriminator"),
        "generator": AutoModelForMaskedLM.from_pretrained(pushed.export / "generator"),
        "tag": AutoModelForPreTraining.from_pretrained(pushed.export / "discriminator"),
        "first": AutoModelForPreTraining.from_pretrained(pushed.repository / pushed.first),
    }
    for key, model in expected.items():
        assert pushed.visitor.results[key] == [], key  # no weight is missing
        assert torch.equal(pushed.outputs[key], model.eval()(pushed.ids)[0]), key
    assert not torch.equal(pushed.outputs["first"], pushed.outputs["tag"])


def test_a_visitor_gets_the_tokenizer_and_the_card_of_a_checkpoint_can_be_followed(pushed):
    tokenizer = AutoTokenizer.from_pretrained(pushed.export / "discriminator")
    assert pushed.visitor.results["tokenizer"] == tokenizer(SENTENCE)["input_ids"]
    assert pushed.visitor.results["first card"][1:] == ["ElectraModel", "ElectraForMaskedLM"]


def test_a_visitor_streams_the_rows_of_the_corpus(pushed):
    (shard,) = (pushed.directory / "out/corpus").glob("train-*.parquet")
    rows = pq.read_table(shard).to_pylist()
    assert len(rows) > 1000 and pushed.visitor.results["corpus"] == rows


def test_nothing_but_the_hub_was_asked(pushed):
    assert pushed.hub.unknown == []
    assert set().union(*(client.elsewhere for client in pushed.clients)) <= {"datasets-server.127.0.0.1"}


# what must not leave


def test_no_token_is_in_any_file_log_card_commit_or_request(pushed):
    kept = {"home/token", ".env", "out/smoke/export/discriminator/notes.txt", "secret/export/discriminator/vocab.txt"}
    kept |= {"link/export/discriminator/vocab.txt"}
    said = [result.out + result.err for result in pushed.results.values()]
    texts = {"said": "".join(said).encode(), "calls": json.dumps([pushed.hub.calls, pushed.hub.commits]).encode()}
    texts |= {name: content for name, content in contents(pushed.directory).items() if name not in kept}
    texts |= {f"object {name}": content for name, content in pushed.hub.objects.items()}
    assert len(texts) > 100
    for canary in (TOKEN, LOGIN, BESIDE):
        assert not [name for name, content in texts.items() if canary.encode() in content]


def test_no_pickle_is_on_the_hub(pushed):
    for name, content in contents(pushed.hub.root).items():
        assert not name.endswith(PICKLE_SUFFIXES) and not PICKLE.match(content), name


def test_a_token_among_the_arguments_is_refused_before_anything_is_written(pushed):
    result = pushed.results["token"]
    assert (
        result.status == 2 and "there is a hub_token; leave it out" in result.err and "`hf auth login`" in result.err
    )


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_run_publishes_nothing(pushed, name):
    result = pushed.results[name]
    assert result.status == 2 and HOSTILE[name] in result.err
    assert not (pushed.hub.root / "models" / "beomi" / name).exists()
    assert not [call for call in pushed.hub.calls if f"beomi/{name}" in call]


def test_a_file_that_lies_beside_is_not_published(pushed):
    assert set(contents(pushed.hub.root / "models/beomi/beside/main")) == set(contents(pushed.repository / "main"))


# the trainer


TRAIN = """
import hashlib, logging, shutil, threading, time, warnings
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from huggingface_hub import constants, snapshot_download
from test_trainer import make_trainer
from transformers import AutoTokenizer, TrainerCallback, TrainingArguments
from kcelectra import KcElectraTrainer, PretrainingArguments
from kcelectra.pretraining.checkpoints import write_checkpoint

time.sleep = lambda seconds: None  # between the tries
tokenizer, sample, nowhere, token = AutoTokenizer.from_pretrained(sys.argv[2]), *sys.argv[3:6]
endpoint, said = constants.ENDPOINT, []

class Listener(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())

logging.getLogger("kcelectra").addHandler(Listener(logging.WARNING))

class Stop(TrainerCallback):
    def on_save(self, args, state, control, **kwargs):
        control.should_training_stop = True

def make(name, **arguments):
    defaults = {"save_strategy": "steps", "save_steps": 3, "push_to_hub": True, "hub_always_push": True}
    defaults |= {"hub_model_id": f"someone/{name}"}
    return make_trainer(tokenizer, sample, Path(name), **{**defaults, **arguments})

def weigh(trainer):
    parts = [p.detach().numpy().tobytes() for p in trainer.model.parameters()]
    return hashlib.sha256(b"".join(parts)).hexdigest()

def train(name, resume=None, **arguments):
    trainer = make(name, **arguments)
    trainer.train(resume_from_checkpoint=resume)
    return weigh(trainer)

def interrupt():
    trainer = make("interrupted", hub_strategy="checkpoint")
    trainer.add_callback(Stop())
    trainer.train()
    shutil.rmtree("interrupted")  # the machine is gone
    pulled = Path(snapshot_download("someone/interrupted", allow_patterns="last-checkpoint/*"), "last-checkpoint")
    files = sorted(path.name for path in pulled.iterdir())
    return trainer.state.global_step, files, train("continued", resume=str(pulled), push_to_hub=False)

def lose_the_hub():
    trainer = make("down")
    constants.ENDPOINT = nowhere
    before = len(said)
    trainer.train()
    facts = {"weights": weigh(trainer), "saved": Path("down/checkpoint-6/trainer_state.json").is_file()}
    facts["said"] = said[before:]
    try:
        trainer.push_to_hub()
    except Exception as error:
        facts["error"] = f"{type(error).__name__}: {error}"
    constants.ENDPOINT = endpoint
    facts["commit"] = trainer.push_to_hub().commit_url
    return facts

def begin_without_a_hub():
    constants.ENDPOINT = nowhere
    before = len(said)
    try:
        make("late")
    finally:
        constants.ENDPOINT = endpoint
    return said[before:]

def push_at_the_end():
    trainer = make("end", hub_strategy="end", hub_revision="v2022")
    trainer.train()
    before = Path(sys.argv[6], "someone/end/v2022").exists()
    trainer.push_to_hub(commit_message="Done")
    return before

def push_tagged():
    trainer = make("tagged", max_steps=3)
    trainer.train()
    trainer.pusher.push_model(trainer.model, tokenizer, step=100_000)
    for step in (150_000, 200_000):
        copy = lambda staging: shutil.copytree("tagged/checkpoint-3", staging, dirs_exist_ok=True)
        trainer.pusher.begin(write_checkpoint(Path(), step, copy))
    trainer.pusher.finish()

def push_while_busy():
    trainer = make("busy", hub_always_push=False, save_strategy="no")
    done = threading.Event()
    trainer.pusher._in_progress = trainer.pusher._executor.submit(done.wait)
    trainer.pusher.begin(Path("tagged/checkpoint-3"))
    threading.Timer(0.5, done.set).start()
    trainer.pusher.begin(Path("checkpoint-200000"))  # waits
    trainer.pusher.finish()

def use_stock_arguments(**arguments):
    trainer = make("plain", push_to_hub=False)
    args = TrainingArguments("stock", use_cpu=True, max_steps=1, **arguments)
    return KcElectraTrainer(trainer.model, args, trainer.data_collator, trainer.train_dataset)

def log_out():
    os.environ["HF_TOKEN"] = "hf_expired"
    try:
        make("logged_out")
    finally:
        os.environ["HF_TOKEN"] = token

import os
attempt("plain", lambda: train("plain", push_to_hub=False))
attempt("every_save", lambda: train("every_save"))
attempt("checkpoint", interrupt)
attempt("down", lose_the_hub)
attempt("late", begin_without_a_hub)
attempt("end", push_at_the_end)
attempt("tagged", push_tagged)
attempt("busy", push_while_busy)
attempt("stock every_save", lambda: use_stock_arguments(push_to_hub=True, hub_model_id="someone/stock").pusher.repo_id)
attempt("token", lambda: PretrainingArguments("x", hub_token=token))
attempt("stock token", lambda: use_stock_arguments(hub_token=token))
attempt("no repository", lambda: make("x", hub_model_id=None))
attempt("bad repository", lambda: make("x", hub_model_id="some one/x"))
attempt("bad revision", lambda: make("x", hub_revision="refs/pr/1"))
attempt("all_checkpoints", lambda: make("x", hub_strategy="all_checkpoints"))
attempt("logged out", log_out)
attempt("public", lambda: make("shown"))
"""


@pytest.fixture(scope="module")
def trained(tokenizer, sample_file, tmp_path_factory):
    directory = tmp_path_factory.mktemp("trained")
    save_tokenizer(tokenizer, directory / "tokenizer")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{unused.getsockname()[1]}"
    (directory / "hub/models/someone/shown/main").mkdir(parents=True)
    with HubServer(directory / "hub", users={TOKEN: "someone"}) as hub:
        words = [str(Path(__file__).parent), str(directory / "tokenizer"), str(sample_file), nowhere, TOKEN]
        client = run_client(TRAIN, *words, str(hub.root / "models"), hub=hub, directory=directory, token=TOKEN)
    client.hub = hub
    return client


def test_pushing_does_not_change_what_is_trained(trained):
    assert len(trained.results["plain"]) == 64
    assert trained.results["every_save"] == trained.results["plain"]


def test_every_save_is_pushed_and_nothing_of_the_joint_model(trained):
    mine = [commit for commit in trained.hub.commits if commit["repository"] == "someone/every_save"]
    assert [commit["summary"] for commit in mine] == ["Step 3", "Step 6"]
    assert set(contents(trained.hub.root / "models/someone/every_save/main")) == MODEL
    assert not (trained.directory / "every_save/.push").exists()


def test_a_checkpoint_from_the_hub_goes_on_to_the_same_weights_without_a_pickle(trained):
    step, files, weights = trained.results["checkpoint"]
    assert step == 3 and weights == trained.results["plain"]
    assert {"states.safetensors", "model.safetensors", "trainer_state.json", "config.json"} <= set(files)
    assert not [name for name in files if name.endswith(PICKLE_SUFFIXES)]


def test_a_hub_that_is_down_does_not_stop_the_training_and_the_last_push_says_so(trained):
    facts = trained.results["down"]
    assert facts["weights"] == trained.results["plain"] and facts["saved"]
    failed = [line for line in facts["said"] if line.endswith("training goes on")]
    assert len(failed) == 2 and "cannot push to someone/down" in failed[0] and "Connection refused" in failed[0]
    assert facts["error"].startswith("HubUnreachable: cannot push to someone/down") and "later" in facts["error"]
    assert "/commit/" in facts["commit"]


def test_a_run_that_begins_while_the_hub_is_down_begins(trained):
    assert [line for line in trained.results["late"] if line.startswith("cannot push to someone/late")]


def test_the_strategy_end_pushes_once_and_tags_it(trained):
    assert trained.results["end"] is False
    mine = [commit for commit in trained.hub.commits if commit["repository"] == "someone/end"]
    assert [commit["summary"] for commit in mine] == ["Done"]
    assert (trained.hub.root / "models/someone/end/v2022/model.safetensors").is_file()


def test_every_hundred_thousand_steps_are_tagged(trained):
    assert trained.results["tagged"] is None
    names = {path.name for path in (trained.hub.root / "models/someone/tagged").iterdir() if len(path.name) < 40}
    assert names == {"main", "step-100k", "step-200k"}
    assert read_step(trained.directory / "checkpoint-200000") == 200_000


def test_a_save_while_the_last_push_goes_on_is_passed_over_but_for_one_that_gets_a_tag(trained):
    assert trained.results["busy"] is None
    mine = [commit for commit in trained.hub.commits if commit["repository"] == "someone/busy"]
    assert [commit["summary"] for commit in mine] == ["Step 200,000"]
    assert (trained.hub.root / "models/someone/busy/step-200k").is_dir()


def test_a_repository_is_private_if_nothing_else_is_asked_for(trained):
    assert {"someone/every_save", "someone/end", "someone/stock"} <= trained.hub.private
    assert trained.results["stock every_save"] == "someone/stock"


@pytest.mark.parametrize(
    ("run", "messages"),
    [
        ("token", ["there is a hub_token", "`hf auth login`"]),
        ("stock token", ["there is a hub_token", "`hf auth login`"]),
        ("no repository", ["give --hub_model_id OWNER/NAME"]),
        ("bad repository", ["'some one/x' is no repository", "give OWNER/NAME"]),
        ("bad revision", ["'refs/pr/1' is no name of a revision"]),
        ("all_checkpoints", ["hub_strategy is 'all_checkpoints'; use one of every_save, checkpoint, end"]),
        ("logged out", ["cannot push to someone/logged_out", "401", "`hf auth login`"]),
        ("public", ["someone/shown is public", "`--hub_private_repo false`"]),
    ],
)
def test_what_cannot_be_pushed_is_refused_before_a_step_is_trained(trained, run, messages):
    error = trained.results[run]
    assert error.startswith("kcelectra.errors.InputError: ")
    assert all(message in error for message in messages), error
    assert TOKEN not in error


def test_the_token_is_in_no_file_of_a_run(trained):
    names = [name for name, content in contents(trained.directory).items() if TOKEN.encode() in content]
    assert not names and TOKEN not in trained.stderr
