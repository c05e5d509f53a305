"""The tasks, as data: their files, what these hold, and how a model is trained on them."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Task:
    """One task.

    Args:
        name: of the task.
        head: `"sequence"`, a label or a number of one text or two; `"tokens"`, a tag of each word; `"spans"`, a part
            of a text that answers a question.
        directory: of its files, below a directory of all tasks.
        files: by split (train, dev, test), the names that its file may have, the official one first. Where no dev
            split was published one is carved from train; where no test labels were, the published dev split is test.
        text_columns: one or two, by name; by number, from 0, where the file has no header.
        label_columns: one; several, of 0 and 1, where each is a label that a text may have.
        labels: by id; None for a number.
        metric: name in `kcelectra.finetuning.metrics.METRICS`.
        selected_by: the value of the metric that chooses the best step on dev.
        max_length: tokens of a row, special ones included.
        batch_size: rows of a step.
        num_epochs: over the training split.
        learning_rate: the highest.
        licence: of the data.
        source: of the data.
        is_multi_label: a text may have several labels, or none.
        is_standardized: numbers are learnt in standard deviations from their mean, whatever their scale.
        hub_id: of the same data on the Hub; None where none was found. Some hold a loading script alone, which
            datasets no longer runs.
        hub_split: the split there that is test here.
        sha256: of the official files that could be had, by name.
    """

    name: str
    head: str
    directory: str
    files: Mapping[str, tuple[str, ...]]
    text_columns: tuple[str | int, ...]
    label_columns: tuple[str | int, ...]
    labels: tuple[str, ...] | None
    metric: str
    selected_by: str
    max_length: int
    batch_size: int
    num_epochs: int
    learning_rate: float
    licence: str
    source: str
    is_multi_label: bool = False
    is_standardized: bool = False
    hub_id: str | None = None
    hub_split: str = "test"
    sha256: Mapping[str, str] = field(default_factory=dict)

    @property
    def test_file(self) -> str:
        """The official test file, below a directory of all tasks."""
        return f"{self.directory}/{self.files['test'][0]}"


def _files(train: str, dev: str | None, test: str) -> dict[str, tuple[str, ...]]:
    """Name the official files, and those of a re-split, which go by the name of their split."""
    names = {"train": train, "dev": dev, "test": test}
    return {
        split: tuple(dict.fromkeys(filter(None, (name, f"{split}.{test.rpartition('.')[2]}"))))
        for split, name in names.items()
    }


_ENTITIES = ("PER", "FLD", "AFW", "ORG", "LOC", "CVL", "DAT", "TIM", "NUM", "EVT", "ANM", "PLT", "MAT", "TRM")
_TAGS = ("O", *(f"{entity}-{part}" for entity in _ENTITIES for part in "BI"))
_UNSMILE = ("여성/가족", "남성", "성소수자", "인종/국적", "연령", "지역", "종교", "기타 혐오", "악플/욕설", "clean")
_KMHAS = ("origin", "physical", "politics", "profanity", "age", "gender", "race", "religion", "not hate speech")

#: Hyperparameters of the seven tasks: KcBERT-Finetune, config/*/KcELECTRA-base-50135-848k.json, but for the length of
#: NSMC: 50 there, which cuts 6 % of the test texts of a vocabulary of 16,000 (recipes/LOG.md, 8). Of BEEP!: KoELECTRA,
#: finetune/config/hate-speech. Of UnSmile and K-MHaS: those of BEEP!, which they are much like (assumption).
# A table: a line for each kind of fact, where the formatter would give each value its own
# fmt: off
TASKS = {
    task.name: task
    for task in (
        Task(
            name="nsmc", head="sequence", directory="nsmc",
            files=_files("ratings_train.txt", None, "ratings_test.txt"),
            text_columns=("document",), label_columns=("label",),
            labels=("0", "1"),  # negative, positive
            metric="accuracy", selected_by="accuracy",
            max_length=128, batch_size=64, num_epochs=8, learning_rate=5e-5,
            licence="CC0-1.0", source="https://github.com/e9t/nsmc", hub_id="e9t/nsmc",
            sha256={
                "ratings_train.txt": "e03b7d14e9e41be8d464a28057cd25d7396c53e67aa7fd5f7e552c59b0ee2940",
                "ratings_test.txt": "8ac9f64052f11dbf6ae0acb5e038f03d90a76f0eda7820cfb3a92d02edfcebda",
            },
        ),
        Task(
            name="naver-ner", head="tokens", directory="naver_ner",
            files=_files("train.tsv", None, "test.tsv"),
            text_columns=(0,), label_columns=(1,),
            labels=_TAGS, metric="entity_f1", selected_by="f1",
            max_length=50, batch_size=64, num_epochs=20, learning_rate=8e-5,
            licence="research and leaderboard use only",
            source="https://github.com/naver/nlp-challenge, split of https://github.com/monologg/KoELECTRA",
            sha256={"test.tsv": "27bc732d9bd5ea2e1c0c43964dac9ce3ab9c9b8bfaef0f71bfde2bfbcbac2694"},
        ),
        Task(
            name="paws", head="sequence", directory="paws",
            files=_files("translated_train.tsv", "dev_2k.tsv", "test_2k.tsv"),
            text_columns=("sentence1", "sentence2"), label_columns=("label",),
            labels=("0", "1"),  # no paraphrase, paraphrase
            metric="accuracy", selected_by="accuracy",
            max_length=128, batch_size=32, num_epochs=15, learning_rate=3e-5,
            licence="free for any purpose, credit Google LLC",
            source="https://github.com/google-research-datasets/paws, PAWS-X ko",
            hub_id="google-research-datasets/paws-x",
            sha256={
                "dev_2k.tsv": "ec6f963972f61f50b164bcf62c8ee06e6565c365d871d14d85e08f398d402b99",
                "test_2k.tsv": "45bb61a9cda953047f4d0628f02555fef2d0c0b5dc05787be3e2c16965a2eef8",
            },
        ),
        Task(
            name="kornli", head="sequence", directory="kornli",
            files=_files("multinli.train.ko.tsv", "xnli.dev.ko.tsv", "xnli.test.ko.tsv"),
            text_columns=("sentence1", "sentence2"), label_columns=("gold_label",),
            labels=("contradiction", "entailment", "neutral"), metric="accuracy", selected_by="accuracy",
            max_length=72, batch_size=128, num_epochs=10, learning_rate=3e-5,
            licence="CC-BY-SA-4.0", source="https://github.com/kakaobrain/KorNLUDatasets, MultiNLI alone",
            hub_id="kakaobrain/kor_nli",
            sha256={
                "xnli.dev.ko.tsv": "821fb1c1c2e538ac2724a6132da36ffa379eb9a542ceb89243b3cf711377382c",
                "xnli.test.ko.tsv": "0db53cf8e182283a0d0404ec3fe1b15d1e29236d23d22082dc20d43067254b3e",
            },
        ),
        Task(
            name="korsts", head="sequence", directory="korsts",
            files=_files("sts-train.tsv", "sts-dev.tsv", "sts-test.tsv"),
            text_columns=("sentence1", "sentence2"), label_columns=("score",),
            labels=None,  # 0 to 5
            metric="correlation", selected_by="spearman",
            max_length=72, batch_size=32, num_epochs=10, learning_rate=5e-5,
            licence="CC-BY-SA-4.0", source="https://github.com/kakaobrain/KorNLUDatasets",
            sha256={
                "sts-train.tsv": "b5aaa7f957d6ff46f4b6834a8b0f024a9234a6eefe9289aed66746b4533da3b8",
                "sts-dev.tsv": "d835b65b424401fbcce6be28a78159df8d61f5b19977ea7a0b83b8cb6105f393",
                "sts-test.tsv": "13f83a3440d9db52d134eb40303ce021b03264aa338fbf2871c8786ce04d2105",
            },
        ),
        Task(
            name="question-pair", head="sequence", directory="question_pair",
            files=_files("train.tsv", "dev.tsv", "test.tsv"),
            text_columns=("question1", "question2"), label_columns=("is_duplicate",),
            labels=("0", "1"),  # the same, different: the column's name says the opposite
            metric="accuracy", selected_by="accuracy",
            max_length=72, batch_size=32, num_epochs=5, learning_rate=5e-5,
            licence="MIT", hub_id="songys/kor_qpair",
            source="https://github.com/songys/Question_pair, split of https://github.com/monologg/KoELECTRA",
            sha256={
                "train.tsv": "addf4c88b19066ad55a09f466c5c3f6428b3f2bd5d55100d3ca5b93d9d8daff9",
                "dev.tsv": "3928c783f561f36547fd8e0c9d78a6e1d6013db3debcf559c4135aa5536badea",
                "test.tsv": "0d5738107ea3742de4dcaf3a358b6bfa4818781bc6aec11a9956a3fbe35f8b61",
            },
        ),
        Task(
            name="korquad", head="spans", directory="korquad",
            files=_files("KorQuAD_v1.0_train.json", None, "KorQuAD_v1.0_dev.json"),
            text_columns=("question", "context"), label_columns=(),
            labels=None, metric="answer_match", selected_by="f1",
            max_length=512, batch_size=16, num_epochs=5, learning_rate=5e-5,
            licence="CC-BY-ND-2.0-KR", source="https://korquad.github.io/KorQuad%201.0/",
            hub_id="KorQuAD/squad_kor_v1", hub_split="validation",
            sha256={"KorQuAD_v1.0_dev.json": "25ffeb51e6c51ec02c071b60a10188e10005c144110f0d876b26079d80a35bdf"},
        ),
        Task(
            name="beep", head="sequence", directory="hate_speech/kocohub/labeled",
            files={"train": ("train.tsv",), "dev": (), "test": ("dev.tsv",)},
            text_columns=("comments",), label_columns=("hate",),
            labels=("none", "offensive", "hate"), metric="macro_f1", selected_by="macro_f1",
            max_length=128, batch_size=32, num_epochs=10, learning_rate=5e-5,
            licence="CC-BY-SA-4.0", source="https://github.com/kocohub/korean-hate-speech", hub_id="moon1ite/kor_hate",
            sha256={
                "train.tsv": "ebebacdcd023af2c4acc8c0a37695fb6433ac04fc009feff8f222724e303a5a9",
                "dev.tsv": "232b615d6e359a9d31dfb8370f32e1733dc5bb3f9c5430d34d7fcc7ba4b7e8ef",
            },
        ),
        Task(
            name="unsmile", head="sequence", directory="hate_speech/unsmile",
            files={"train": ("unsmile_train_v1.0.tsv",), "dev": (), "test": ("unsmile_valid_v1.0.tsv",)},
            text_columns=("문장",), label_columns=_UNSMILE,
            labels=_UNSMILE, is_multi_label=True, metric="multi_label", selected_by="lrap",
            max_length=128, batch_size=32, num_epochs=10, learning_rate=5e-5,
            licence="CC-BY-NC-ND-4.0", source="https://github.com/smilegate-ai/korean_unsmile_dataset",
            hub_id="smilegate-ai/kor_unsmile", hub_split="valid",
            sha256={
                "unsmile_train_v1.0.tsv": "f560a2f624d98f7cd9dc5ec6e5368efb7edd9bfc01cfa963538facfad9fc6001",
                "unsmile_valid_v1.0.tsv": "b391af71ab352eea27cecac0ff059fe2ed72d7c99585c10e86ce77a75bd12e42",
            },
        ),
        Task(
            name="kmhas", head="sequence", directory="hate_speech/kmhas",
            files={"train": ("kmhas_train.txt",), "dev": ("kmhas_valid.txt",), "test": ("kmhas_test.txt",)},
            text_columns=("document",), label_columns=("label",),  # ids with commas between
            labels=_KMHAS, is_multi_label=True, metric="multi_label", selected_by="micro_f1",
            max_length=128, batch_size=32, num_epochs=10, learning_rate=5e-5,
            licence="CC-BY-SA-4.0", source="https://github.com/adlnlp/K-MHaS",
            hub_id="jeanlee/kmhas_korean_hate_speech",
            sha256={
                "kmhas_valid.txt": "cb0df9e3cd665125b554d4c5e6f48b0801d5535ead51269134de5b85ae469c18",
                "kmhas_test.txt": "9eaf470ee12c445817301d58672349500d6759516a730e879d36d6de17a2051a",
            },
        ),
    )
}
