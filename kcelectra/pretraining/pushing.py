"""A run pushes its checkpoints while it trains: both halves as plain repositories, never the joint model."""

import logging
import shutil
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from huggingface_hub import CommitInfo, ModelCard, ModelCardData
from transformers import PreTrainedTokenizerBase, TrainingArguments
from transformers.trainer_utils import HubStrategy

from kcelectra.errors import InputError
from kcelectra.hub import (
    MODEL_FILES,
    HubUnreachable,
    check_repo_id,
    check_tag,
    model_files,
    open_repository,
    push_files,
)
from kcelectra.manifest import MANIFEST
from kcelectra.pretraining.checkpoints import read_step, verify_checkpoint
from kcelectra.pretraining.export import export_checkpoint, export_model
from kcelectra.pretraining.modeling import KcElectraForPreTraining

logger = logging.getLogger(__name__)

TAG_STEPS = 100_000  # a checkpoint at a multiple of these gets a tag
STAGING_DIR, EXPORT_DIR, CHECKPOINT_DIR = ".push", "export", "last-checkpoint"
STRATEGIES = (HubStrategy.EVERY_SAVE, HubStrategy.CHECKPOINT, HubStrategy.END)

_CARD = """---
{{ card_data }}
---

# {{ name }}

A pretraining run after {{ "{:,}".format(step) }} steps. It loads without any package but `transformers`:

```python
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{{ repo_id }}")
model = AutoModel.from_pretrained("{{ repo_id }}")
generator = AutoModelForMaskedLM.from_pretrained("{{ repo_id }}", subfolder="generator")
```
"""


def check_push_arguments(args: TrainingArguments) -> None:
    """Check what the arguments say about the Hub.

    Raises:
        InputError: there is a token among them, which files would keep; or a push is asked for that is not made.
    """
    if args.hub_token is not None:
        raise InputError("there is a hub_token; leave it out, and log in with `hf auth login` or set HF_TOKEN")
    if args.push_to_hub:
        require_repository(args)


def require_repository(args: TrainingArguments) -> str:
    """Return where the arguments say that a run is pushed to.

    Raises:
        InputError: they do not say it, or ask for a strategy that there is not.
    """
    if args.hub_model_id is None:
        raise InputError("push_to_hub needs to know where; give --hub_model_id OWNER/NAME")
    check_repo_id(args.hub_model_id)
    check_tag(args.hub_revision)
    if args.hub_strategy not in STRATEGIES:
        names = ", ".join(strategy.value for strategy in STRATEGIES)
        raise InputError(f"hub_strategy is {HubStrategy(args.hub_strategy).value!r}; use one of {names}")
    return args.hub_model_id


class Pusher:
    """Pushes checkpoints of a run, one at a time; private if `hub_private_repo` is not false.

    The root of the repository is the discriminator, the generator is below `generator/`; with the strategy
    `checkpoint` there is `last-checkpoint/` too, to go on from. A checkpoint at a multiple of `TAG_STEPS` gets a tag,
    `step-200k`.

    Args:
        args: of the run.

    Raises:
        InputError: the arguments do not say where to, or the Hub refuses. One that is down now may be up later.
    """

    def __init__(self, args: TrainingArguments) -> None:
        self.repo_id = require_repository(args)
        self.args, self.is_public = args, args.hub_private_repo is False
        self._executor = ThreadPoolExecutor(max_workers=1)
        self._in_progress: Future[CommitInfo] | None = None
        try:
            open_repository(self.repo_id, public=self.is_public)
        except HubUnreachable as error:
            logger.warning("%s", error)

    def begin(self, checkpoint_dir: Path) -> None:
        """Copy a checkpoint and begin to push it; what fails is a warning, and training goes on.

        It is passed over if the push before is not done, as the stock Trainer does; but for one that gets a tag.
        """
        step = read_step(checkpoint_dir)
        is_busy = self._in_progress is not None and not self._in_progress.done()
        if is_busy and step % TAG_STEPS and not self.args.hub_always_push:
            return
        self.finish()
        try:
            staging_dir = self._stage(checkpoint_dir)
        except Exception as error:  # a full disk is a SafetensorError too
            logger.warning("cannot push %s: %s; training goes on", checkpoint_dir, error)
            return
        self._in_progress = self._executor.submit(self._push, staging_dir, step)
        self._in_progress.add_done_callback(_warn)

    def finish(self) -> None:
        """Wait for the push that has begun."""
        if self._in_progress is not None:
            wait([self._in_progress])

    def push(self, checkpoint_dir: Path) -> CommitInfo:
        """Push a checkpoint and wait for it; `hub_revision` is its tag.

        Raises:
            InputError: see `push_files`.
        """
        self.finish()
        return self._push(self._stage(checkpoint_dir), read_step(checkpoint_dir), tag=self.args.hub_revision)

    def push_model(
        self,
        model: KcElectraForPreTraining,
        tokenizer: PreTrainedTokenizerBase,
        *,
        step: int,
        message: str | None = None,
        tag: str | None = None,
    ) -> CommitInfo:
        """Push a model that is in memory and wait for it; see `push`."""
        self.finish()
        staging_dir = self._clear_staging()
        export_model(model, tokenizer, staging_dir / EXPORT_DIR)
        return self._push(staging_dir, step, message=message, tag=tag or self.args.hub_revision)

    def _clear_staging(self) -> Path:
        staging_dir = Path(str(self.args.output_dir), STAGING_DIR)
        shutil.rmtree(staging_dir, ignore_errors=True)
        staging_dir.mkdir(parents=True)
        return staging_dir

    def _stage(self, checkpoint_dir: Path) -> Path:
        manifest = verify_checkpoint(checkpoint_dir)
        staging_dir = self._clear_staging()
        export_checkpoint(checkpoint_dir, staging_dir / EXPORT_DIR)
        if self.args.hub_strategy == HubStrategy.CHECKPOINT:
            (staging_dir / CHECKPOINT_DIR).mkdir()
            for name in (*manifest["files"], MANIFEST):
                shutil.copyfile(checkpoint_dir / name, staging_dir / CHECKPOINT_DIR / name)
        return staging_dir

    def _push(self, staging_dir: Path, step: int, *, message: str | None = None, tag: str | None = None) -> CommitInfo:
        card_data = ModelCardData(language="ko", library_name="transformers", tags=["electra", "korean", "kcelectra"])
        name = self.repo_id.split("/")[-1]
        card = ModelCard.from_template(card_data, template_str=_CARD, name=name, repo_id=self.repo_id, step=step)
        files = model_files(staging_dir / EXPORT_DIR) | {"README.md": str(card).encode()}
        checkpoint = sorted((staging_dir / CHECKPOINT_DIR).glob("*"))
        files |= {f"{CHECKPOINT_DIR}/{path.name}": path for path in checkpoint}
        commit = push_files(
            files,
            roots=[staging_dir],
            repo_id=self.repo_id,
            message=message or f"Step {step:,}",
            public=self.is_public,
            owned=(*MODEL_FILES, f"{CHECKPOINT_DIR}/*") if checkpoint else MODEL_FILES,
            tag=tag or (f"step-{step // 1000}k" if step and step % TAG_STEPS == 0 else None),
        )
        shutil.rmtree(staging_dir)
        return commit


def _warn(push: Future[CommitInfo]) -> None:
    if error := push.exception():
        logger.warning("%s; training goes on", error)
