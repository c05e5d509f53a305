"""The Hub's own clients read data, vocabularies and exported models from a Hub that is served here."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hub import HubServer, run_client
from huggingface_hub.errors import OfflineModeIsEnabled
from safetensors.torch import load_file, save_file
from test_vocabulary import V2021, V2023, VOCAB_DIR, make_byte_level

from kcelectra import KcElectraConfig, KcElectraForPreTraining, export_checkpoint
from kcelectra import hub as kcelectra_hub
from kcelectra.corpus.comments import CommentReader
from kcelectra.errors import InputError
from kcelectra.hub import MODEL_FILES, _is_owned, push_files
from kcelectra.tokenization import load_tokenizer, save_tokenizer, train_tokenizer

LEGACY_SIZE = 1000
SENTENCE = "ㅋㅋㅋ 이 영화 진짜 Good 이에요!! 😂"
# tokenizer_config.json of KcELECTRA-base and its v2022 as they are published, but for the special tokens it repeats
LEGACY_CONFIG = {
    "do_lower_case": False,
    "tokenize_chinese_chars": True,
    "strip_accents": None,
    "model_max_length": 512,
}

READ_COMMENTS = """
from kcelectra.corpus.comments import CommentReader

def read(*arguments, **options):
    reader = CommentReader(*arguments, **options)
    return [tuple(comment) for batch in reader for comment in batch], dict(reader.counts), reader.has_parents

name = "someone/comments"
attempt("main", lambda: read(name))
attempt("old", lambda: read(name, revision="old"))
attempt("missing column", lambda: read(name, text_column="comment"))
attempt("missing split", lambda: read(name, split="validation"))
attempt("missing revision", lambda: read(name, revision="v9"))
attempt("missing repository", lambda: read("someone/nothing"))
attempt("no UTF-8", lambda: read("someone/bytes"))
attempt("no CSV", lambda: read("someone/csv"))
"""

LOAD_TOKENIZERS = """
from kcelectra.tokenization import load_tokenizer

def load(name, revision=None):
    tokenizer = load_tokenizer(name, revision=revision)
    return tokenizer.get_vocab(), tokenizer(sys.argv[1])["input_ids"], tokenizer.model_max_length

name = "beomi/KcELECTRA-base"
attempt("main", lambda: load(name))
attempt("v2022", lambda: load(name, "v2022"))
attempt("missing revision", lambda: load(name, "v9"))
attempt("missing repository", lambda: load("beomi/nothing"))
"""

PAIR_TOKENIZERS = """
import re
from transformers import AutoTokenizer, ElectraConfig
from kcelectra.tokenization import load_tokenizer

name, config = "beomi/KcELECTRA-base", ElectraConfig(vocab_size=50_135)

def load(**where):
    return load_tokenizer(name, config=config, **where)(sys.argv[2])["input_ids"]

def follow(message):
    return eval(re.search("load (AutoTokenizer.from_pretrained.*)$", message)[1])(sys.argv[2])["input_ids"]

attempt("main", load)
attempt("revision", lambda: load(revision=sys.argv[1]))
attempt("followed", lambda: follow(results["main"]))
attempt("unpaired", lambda: len(AutoTokenizer.from_pretrained(name)))
"""

PUSH_TOKENIZER = """
sys.modules["kcelectra"] = None  # any import of it now fails
from huggingface_hub import HfApi
from transformers import AutoTokenizer

def push():
    HfApi().create_repo("someone/kc-tokenizer")
    return HfApi().upload_folder(repo_id="someone/kc-tokenizer", folder_path=sys.argv[1]) and "pushed"

def encode():
    with open(sys.argv[2], encoding="utf-8") as file:
        texts = json.load(file)
    return AutoTokenizer.from_pretrained("someone/kc-tokenizer")(texts)["input_ids"]

attempt("push", push)
attempt("encode", encode)
"""

LOAD_EXPORTS = """
sys.modules["kcelectra"] = None  # any import of it now fails
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForPreTraining, AutoTokenizer

ids, outputs = load_file(sys.argv[1])["ids"], {}

def load(loader, repository, **where):
    model, info = loader.from_pretrained(repository, output_loading_info=True, **where)
    outputs[f"{loader.__name__} {repository}"] = model.eval()(ids)[0].detach().contiguous()
    return sorted({key.split(".")[0] for kind in ("missing_keys", "mismatched_keys") for key in info[kind]})

def tokenize(repository, **where):
    return AutoTokenizer.from_pretrained(repository, **where).get_vocab()

halves, rooted = "someone/kc", "someone/kc-base"
for repository, discriminator in ((halves, {"subfolder": "discriminator"}), (rooted, {})):
    for loader in (AutoModel, AutoModelForPreTraining):
        attempt(f"{loader.__name__} {repository}", lambda: load(loader, repository, **discriminator))
    loader = AutoModelForMaskedLM
    attempt(f"{loader.__name__} {repository}", lambda: load(loader, repository, subfolder="generator"))
    attempt(f"AutoTokenizer {repository}", lambda: tokenize(repository, **discriminator))
save_file(outputs, sys.argv[2])
"""

LOAD_LEGACY = """
import os
os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "true"  # or a thread asks a Space to convert what is no safetensors
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

ids = load_file(sys.argv[1])["ids"]

def load(name, **options):
    model = AutoModel.from_pretrained(name, **options).eval()
    save_file({"output": model(ids)[0].detach().contiguous()}, sys.argv[2])
    return "loaded"

attempt("tokenizer", lambda: len(AutoTokenizer.from_pretrained("beomi/KcELECTRA-base")))
attempt("tensors", lambda: load("beomi/KcELECTRA-base"))
attempt("tensors, safetensors only", lambda: load("beomi/KcELECTRA-base", use_safetensors=True))
attempt("code", lambda: load("beomi/code"))
"""


@pytest.fixture(scope="module")
def comments_client(tmp_path_factory):
    """A dataset of two shards, the first of which ends inside a batch, and an older one without threads."""
    directory = tmp_path_factory.mktemp("comments")
    texts = [None if i % 700 == 3 else f"댓글 {i} ㅋㅋ" for i in range(2345)]
    threads = [None if i % 5 == 0 else f"글 {i // 10}" for i in range(len(texts))]
    main, old = (directory / "hub" / "datasets" / "someone" / "comments" / name / "data" for name in ("main", "old"))
    main.mkdir(parents=True)
    old.mkdir(parents=True)
    for shard, part in enumerate((slice(0, 1203), slice(1203, None))):
        table = pa.table({"text": texts[part], "thread": threads[part]})
        pq.write_table(table, main / f"train-0000{shard}-of-00002.parquet", row_group_size=400)
    pq.write_table(pa.table({"text": ["옛날 댓글", "또 하나"]}), old / "train-00000-of-00001.parquet")
    for name, data in [("bytes/main/a.txt", b"a\n\xff\xfe\n"), ("csv/main/a.csv", b"text,n\na,1\nb,2,3,4\n")]:
        path = directory / "hub" / "datasets" / "someone" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
    with HubServer(directory / "hub") as hub:
        client = run_client(READ_COMMENTS, hub=hub, directory=directory)
    client.main, client.old = main, old
    return client


def read(directory: Path) -> list:
    reader = CommentReader(str(directory))
    comments = [list(comment) for batch in reader for comment in batch]
    return [comments, dict(reader.counts), reader.has_parents]


def test_a_dataset_of_the_hub_is_read_like_its_files(comments_client):
    local = read(comments_client.main)
    assert len(local[0]) > 2000 and local[1]["no text"] > 0
    assert comments_client.results["main"] == local


def test_a_revision_of_a_dataset_is_honoured(comments_client):
    assert comments_client.results["old"] == read(comments_client.old)


def test_a_missing_column_of_a_dataset_lists_those_that_exist(comments_client):
    message = "kcelectra.errors.InputError: someone/comments has no column 'comment'; it has 'text', 'thread': "
    assert comments_client.results["missing column"] == f"{message}give one as --text_column"


@pytest.mark.parametrize("kind, name", [("no UTF-8", "someone/bytes"), ("no CSV", "someone/csv")])
def test_a_dataset_that_cannot_be_read_says_what_to_do(comments_client, kind, name):
    message = comments_client.results[kind]
    assert message.startswith(f"kcelectra.errors.InputError: cannot read '{name}': ")
    assert message.endswith("; download its files and give their path")


def test_a_missing_split_says_which_there_are_and_what_to_type(comments_client):
    message = comments_client.results["missing split"]
    assert message.startswith("kcelectra.errors.InputError: cannot open 'someone/comments'")
    assert "'train'" in message and "--dataset_split" in message


@pytest.mark.parametrize("missing, name", [("repository", "someone/nothing"), ("revision", "someone/comments")])
def test_a_dataset_that_is_not_there_says_what_to_type(comments_client, missing, name):
    message = comments_client.results[f"missing {missing}"]
    assert message.startswith(f"kcelectra.errors.InputError: cannot open '{name}'")
    assert "give a local path, or a Hub dataset" in message


@pytest.fixture(scope="module")
def tokenizer_client(tokenizer, tmp_path_factory):
    """A repository of today on main, and v2022 as of old: no tokenizer.json, no class, no special tokens map."""
    directory = tmp_path_factory.mktemp("tokenizers")
    main, legacy = (directory / "hub" / "models" / "beomi" / "KcELECTRA-base" / name for name in ("main", "v2022"))
    main.mkdir(parents=True)
    legacy.mkdir()
    save_tokenizer(tokenizer, main)
    lines = (main / "vocab.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    (legacy / "vocab.txt").write_text("".join(lines[:LEGACY_SIZE]), encoding="utf-8")
    (legacy / "tokenizer_config.json").write_text(json.dumps(LEGACY_CONFIG))
    for revision, vocab_size in ((main, len(tokenizer)), (legacy, LEGACY_SIZE)):
        (revision / "config.json").write_text(json.dumps({"model_type": "electra", "vocab_size": vocab_size}))
    with HubServer(directory / "hub") as hub:
        client = run_client(LOAD_TOKENIZERS, SENTENCE, hub=hub, directory=directory)
    client.vocabularies = {path.name: path / "vocab.txt" for path in (main, legacy)}
    return client


@pytest.mark.parametrize("revision, size", [("main", 1200), ("v2022", LEGACY_SIZE)])
def test_a_tokenizer_of_the_hub_is_the_one_of_its_revision(tokenizer_client, revision, size):
    vocabulary, ids, max_length = tokenizer_client.results[revision]
    local = load_tokenizer(tokenizer_client.vocabularies[revision])
    assert len(vocabulary) == size and vocabulary == local.get_vocab()
    assert ids == local(SENTENCE)["input_ids"]
    assert max_length == 512


@pytest.mark.parametrize("missing, name", [("repository", "beomi/nothing"), ("revision", "beomi/KcELECTRA-base")])
def test_a_tokenizer_that_is_not_there_says_what_to_type(tokenizer_client, missing, name):
    message = tokenizer_client.results[f"missing {missing}"]
    assert message.startswith(f"kcelectra.errors.InputError: cannot load a tokenizer from {name}: ")
    assert "give a vocab.txt, a directory, or a Hub id with its --tokenizer_revision" in message


@pytest.fixture(scope="module")
def pairing_client(tmp_path_factory):
    """KcELECTRA-base as it is: another model and tokenizer on main since 2023, and v2021 at its commit."""
    if not VOCAB_DIR.is_dir():
        pytest.skip(f"needs the published vocabularies in {VOCAB_DIR}")
    directory = tmp_path_factory.mktemp("pairing")
    main, v2021 = (directory / "hub" / "models" / V2021.repo_id / name for name in ("main", V2021.revision))
    v2021.mkdir(parents=True)
    make_byte_level().save_pretrained(main)
    shutil.copyfile(VOCAB_DIR / "kcelectra_v2021_vocab.txt", v2021 / "vocab.txt")
    (v2021 / "tokenizer_config.json").write_text(json.dumps(LEGACY_CONFIG))
    for revision, known in ((main, V2023), (v2021, V2021)):
        config = {"model_type": "electra", "vocab_size": known.size, "pad_token_id": known.pad_token_id}
        (revision / "config.json").write_text(json.dumps(config))
    with HubServer(directory / "hub") as hub:
        return run_client(PAIR_TOKENIZERS, V2021.revision, SENTENCE, hub=hub, directory=directory)


def test_the_tokenizer_that_replaced_that_of_v2021_is_refused_and_the_revision_is_named(pairing_client):
    message = pairing_client.results["main"]
    assert message.startswith("kcelectra.errors.InputError: the model of KcELECTRA v2021 has 50135 tokens")
    assert f'revision="{V2021.revision}"' in message
    assert pairing_client.results["unpaired"] == 30_000  # to transformers all is well


def test_the_revision_of_v2021_is_accepted_and_what_the_message_says_can_be_typed(pairing_client):
    ids = load_tokenizer(VOCAB_DIR / "kcelectra_v2021_vocab.txt")(SENTENCE)["input_ids"]
    assert pairing_client.results["revision"] == pairing_client.results["followed"] == ids


@pytest.fixture(scope="module")
def pushed_client(sample_comments, tmp_path_factory):
    """A tokenizer that was trained into a directory, pushed and loaded again by one that knows no kcelectra."""
    directory = tmp_path_factory.mktemp("pushed")
    texts = [comment["text"] for comment in sample_comments] + [SENTENCE, "", "뷁 漢字 [MASK]"]
    tokenizer = train_tokenizer(iter(texts), directory / "tokenizer", vocab_size=1500, num_unused=3)
    (directory / "texts.json").write_text(json.dumps(texts))
    paths = [str(directory / name) for name in ("tokenizer", "texts.json")]
    with HubServer(directory / "hub", users={"hf_someone": "someone"}) as hub:
        client = run_client(PUSH_TOKENIZER, *paths, hub=hub, directory=directory, token="hf_someone")
    client.commits, client.ids = hub.commits, tokenizer(texts)["input_ids"]
    return client


def test_a_trained_tokenizer_comes_back_from_the_hub_with_the_same_ids(pushed_client):
    assert pushed_client.results["push"] == "pushed"
    files = ["manifest.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]
    assert [commit["added"] for commit in pushed_client.commits] == [files]
    assert len(pushed_client.ids) > 2000
    assert pushed_client.results["encode"] == pushed_client.ids


@pytest.fixture(scope="module")
def export_client(tokenizer, tmp_path_factory):
    """An export as it is, and one whose discriminator was moved to the root of the repository."""
    directory = tmp_path_factory.mktemp("exports")
    torch.manual_seed(0)
    model = KcElectraForPreTraining(KcElectraConfig.from_size("tiny", vocab_size=len(tokenizer), num_hidden_layers=2))
    model.save_pretrained(directory / "checkpoint-1")
    tokenizer.save_pretrained(directory / "checkpoint-1")
    halves, rooted = (directory / "hub" / "models" / "someone" / name / "main" for name in ("kc", "kc-base"))
    halves.parent.mkdir(parents=True)
    rooted.parent.mkdir()
    export_checkpoint(directory / "checkpoint-1", halves)
    export_checkpoint(directory / "checkpoint-1", rooted)
    for file in (rooted / "discriminator").iterdir():
        file.rename(rooted / file.name)
    ids = torch.randint(5, 400, (2, 12))
    save_file({"ids": ids}, directory / "ids.safetensors")
    paths = [str(directory / name) for name in ("ids.safetensors", "outputs.safetensors")]
    with HubServer(directory / "hub") as hub:
        client = run_client(LOAD_EXPORTS, *paths, hub=hub, directory=directory)
    client.model, client.ids, client.outputs = model.eval(), ids, load_file(paths[1])
    return client


@pytest.mark.parametrize("repository", ["someone/kc", "someone/kc-base"])
def test_an_export_on_the_hub_loads_without_the_package_and_gives_the_same_logits(export_client, repository):
    model, ids = export_client.model, export_client.ids
    expected = {
        "AutoModel": model.discriminator.electra(ids).last_hidden_state,
        "AutoModelForPreTraining": model.discriminator(ids).logits,
        "AutoModelForMaskedLM": model.generator(ids).logits,
    }
    for loader, output in expected.items():
        assert export_client.results[f"{loader} {repository}"] == []  # no weight is missing or has another shape
        assert torch.equal(export_client.outputs[f"{loader} {repository}"], output)


@pytest.mark.parametrize("repository", ["someone/kc", "someone/kc-base"])
def test_an_export_on_the_hub_has_its_tokenizer(export_client, tokenizer, repository):
    assert export_client.results[f"AutoTokenizer {repository}"] == tokenizer.get_vocab()


class Touch:
    """What a pickle does where it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def legacy_client(tokenizer, tmp_path_factory):
    """Repositories as of 2021: vocab.txt and pytorch_model.bin, one with tensors and one with code in it."""
    directory = tmp_path_factory.mktemp("legacy")
    torch.manual_seed(0)
    config = KcElectraConfig.from_size("tiny", vocab_size=len(tokenizer), num_hidden_layers=1)
    model = KcElectraForPreTraining(config).discriminator.eval()
    states = {"KcELECTRA-base": model.state_dict(), "code": {"weight": Touch(directory / "was_here")}}
    for name, state in states.items():
        main = directory / "hub" / "models" / "beomi" / name / "main"
        main.mkdir(parents=True)
        model.config.save_pretrained(main)
        save_tokenizer(tokenizer, main)
        (main / "tokenizer.json").unlink()
        (main / "tokenizer_config.json").write_text(json.dumps(LEGACY_CONFIG))
        torch.save(state, main / "pytorch_model.bin")
    ids = torch.randint(5, 400, (2, 12))
    save_file({"ids": ids}, directory / "ids.safetensors")
    paths = [str(directory / name) for name in ("ids.safetensors", "output.safetensors")]
    with HubServer(directory / "hub") as hub:
        client = run_client(LOAD_LEGACY, *paths, hub=hub, directory=directory)
    client.expected, client.output = model.electra(ids).last_hidden_state, load_file(paths[1])["output"]
    return client


def test_a_legacy_repository_loads_with_its_vocabulary_and_its_pickled_tensors(legacy_client, tokenizer):
    assert legacy_client.results["tokenizer"] == len(tokenizer)
    assert legacy_client.results["tensors"] == "loaded"
    assert torch.equal(legacy_client.output, legacy_client.expected)


def test_a_legacy_repository_is_refused_where_only_safetensors_are_taken(legacy_client):
    assert "OSError" in legacy_client.results["tensors, safetensors only"]
    assert "model.safetensors" in legacy_client.results["tensors, safetensors only"]


def test_a_pickle_that_asks_for_code_is_refused_and_none_of_it_runs(legacy_client):
    assert "UnpicklingError: Weights only load failed" in legacy_client.results["code"]
    assert not (legacy_client.directory / "was_here").exists()


CLIENTS = ["comments_client", "tokenizer_client", "pairing_client", "pushed_client", "export_client", "legacy_client"]


@pytest.mark.parametrize("client", CLIENTS)
def test_no_request_leaves_for_another_host(request, client):
    client = request.getfixturevalue(client)
    assert client.calls
    assert client.unknown == []
    # the dataset viewer of this Hub, by a name that `datasets` makes of the endpoint; it does without
    assert set(client.elsewhere) <= {"datasets-server.127.0.0.1"}


@pytest.mark.parametrize(
    ("name", "is_owned"),
    [
        ("model-00001-of-00002.safetensors", True),
        ("models/mine/other.safetensors", False),
        ("tokenizer_config.json", True),
        ("tokenizers/old/vocab.json", False),
        ("generator/model.safetensors", True),
        ("images/2026/loss.png", True),
        ("checkpoints/a.pth", False),
    ],
)
def test_a_push_of_a_model_replaces_no_file_of_another_directory(name, is_owned):
    assert _is_owned(name, MODEL_FILES) == is_owned


def test_a_new_repository_is_seen_by_nobody_before_it_holds_the_files(monkeypatch):
    class Refusing:
        def create_repo(self, repo_id, **options):
            created.append(options["private"])
            raise ValueError("no such licence")

    created: list[bool] = []
    monkeypatch.setattr(kcelectra_hub, "HfApi", Refusing)
    with pytest.raises(InputError, match="no such licence; look at the name and the licence"):
        push_files({"README.md": b"card"}, roots=[], repo_id="someone/new", message="m", public=True)
    assert created == [True]


@pytest.mark.parametrize(
    ("error", "cure"),
    [
        (OfflineModeIsEnabled("offline mode is enabled"), "is enabled; type the same again without HF_HUB_OFFLINE"),
        (PermissionError(13, "Permission denied", "token"), "denied: 'token'; mend that, and type the same again"),
    ],
)
def test_what_the_hub_did_not_refuse_says_nothing_of_the_licence(monkeypatch, error, cure):
    class Failing:
        def create_repo(self, repo_id, **options):
            raise error

    monkeypatch.setattr(kcelectra_hub, "HfApi", Failing)
    with pytest.raises(InputError, match=cure):
        push_files({"README.md": b"card"}, roots=[], repo_id="someone/new", message="m")
