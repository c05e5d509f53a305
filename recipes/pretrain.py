"""Pretrain a generator and a discriminator on raw comments, and export both.

The whole pipeline on the embedded sample, in two minutes on a CPU:

    accelerate launch recipes/pretrain.py

Your own comments, a published architecture; the same command again continues an interrupted run:

    accelerate launch recipes/pretrain.py recipes/small/pretrain.yaml --dataset "comments/*.parquet"

`--dataset` may be rows that `recipes/pack.py` wrote, and a run may go on from a released model:

    accelerate launch recipes/pretrain.py --dataset out/packed --init_discriminator beomi/KcELECTRA-base-v2022

It may be killed at any moment. After SIGTERM or SIGUSR1 it saves and exits with status 143. `run.json` says what ran.

`--push_to_hub true --hub_model_id OWNER/NAME` pushes each checkpoint as it is saved, to a private repository;
`--resume_from_checkpoint DIRECTORY` begins with one that was pushed (`--hub_strategy checkpoint`, `last-checkpoint/`).
"""

import logging
import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

from transformers import set_seed
from transformers.utils.logging import disable_progress_bar

from kcelectra.arguments import given_settings, parse_args, run_recipe
from kcelectra.errors import InputError
from kcelectra.hub import main_half
from kcelectra.pretraining.checkpoints import STATE_FILE, find_last_checkpoint, read_history, read_step
from kcelectra.pretraining.export import export_checkpoint
from kcelectra.pretraining.health import check_health
from kcelectra.pretraining.run import build_trainer, claim_run_dir, describe_run, lock_run_dir, prepare_cpu
from kcelectra.pretraining.run_arguments import DataArguments, ModelArguments
from kcelectra.pretraining.run_data import open_source, prepare_tokenizer
from kcelectra.pretraining.signals import StopSignals
from kcelectra.pretraining.trainer import KcElectraTrainer
from kcelectra.pretraining.training_arguments import PretrainingArguments
from kcelectra.release.report import REPORT_PAGE, check_learning, loading_snippet, write_report

logger = logging.getLogger(__name__)

LAUNCHER = ("ACCELERATE_", "GROUP_", "LOCAL_", "MASTER_", "RANK", "ROLE_", "TORCHELASTIC_", "WORLD_SIZE")
NO_EPOCHS = "rows are read on without an end of an epoch"
REFUSED = {
    ("save_strategy", "no"): "the last checkpoint is what is exported",
    ("save_strategy", "best"): "a run goes on from its last checkpoint",
    ("save_strategy", "epoch"): NO_EPOCHS,
    ("logging_strategy", "no"): "the log is what the report shows",
    ("logging_strategy", "epoch"): NO_EPOCHS,
    ("eval_strategy", "epoch"): NO_EPOCHS,
}
SMOKE_PRESET = Path(__file__).parent / "smoke" / "pretrain.yaml"


@dataclass
class ProbeArguments:
    """A small fine-tuning of each checkpoint, to see early what the pretraining is good for."""

    probe_task: str | None = field(default=None, metadata={"help": "Of recipes/finetune.py, such as nsmc."})
    probe_data_dir: str | None = field(default=None, metadata={"help": "Its data."})
    probe_examples: int = field(default=2000, metadata={"help": "To train on, and half as many to test on."})

    def __post_init__(self) -> None:
        if self.probe_task is not None and self.probe_data_dir is None:
            raise InputError("give --probe_data_dir, such as --probe_data_dir data")


def main() -> None:
    """Run the pipeline, or continue where it was interrupted."""
    with ExitStack() as stack:
        run(stack)


def run(stack: ExitStack) -> None:
    """Run it; what the stack holds is held to the end."""
    logging.basicConfig(format="%(levelname)s %(message)s")
    classes = (ModelArguments, DataArguments, PretrainingArguments, ProbeArguments)
    arguments = parse_args(*classes, default_preset=SMOKE_PRESET)
    model_args, data_args, training_args, probe_args = arguments
    for (name, value), reason in REFUSED.items():
        if getattr(training_args, name) == value:
            raise InputError(f"{name} is {value}, and {reason}; leave out --{name}")
    if training_args.disable_tqdm:
        disable_progress_bar()
    prepare_cpu()
    run_dir = training_args.output_dir
    with training_args.main_process_first(local=False):  # the disk is one, also of several machines
        if training_args.process_index == 0:
            stack.enter_context(lock_run_dir(run_dir))
        claim_run_dir(run_dir, given_settings(*arguments, default_preset=SMOKE_PRESET))
        source = open_source(data_args, run_dir, seed=training_args.seed)
        released = {half: getattr(model_args, half) for half in ("init_discriminator", "init_generator")}
        tokenizer = prepare_tokenizer(data_args, source, run_dir, **released)
    set_seed(training_args.seed)
    trainer = build_trainer(model_args, data_args, training_args, source=source, tokenizer=tokenizer)
    trainer.recorded = {**asdict(model_args), **asdict(data_args), **asdict(probe_args)}
    if probe_args.probe_task is not None:
        trainer.after_save.append(lambda checkpoint: probe(checkpoint, probe_args, trainer.signals))
    checkpoint = trainer.find_checkpoint(True)
    if checkpoint is not None and read_step(checkpoint) >= training_args.max_steps:
        print(f"{run_dir} has trained its {training_args.max_steps} steps; delete it to train anew")
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else pulled_checkpoint(training_args))
    if trainer.is_world_process_zero():
        finish(trainer, run_dir)


def pulled_checkpoint(arguments: PretrainingArguments) -> str | None:
    """Return the checkpoint that a run begins with, which may be of the Hub; None if there is none."""
    given = arguments.resume_from_checkpoint
    if given is None:
        return None
    if not Path(given, STATE_FILE).is_file():
        raise InputError(f"{given} is no checkpoint: it has no {STATE_FILE}; give a last-checkpoint that was pushed")
    if read_step(Path(given)) >= arguments.max_steps:
        raise InputError(f"{given} has trained {read_step(Path(given))} steps; give a higher --max_steps")
    return given


def probe(checkpoint: Path, arguments: ProbeArguments, signals: StopSignals) -> None:
    """Fine-tune a checkpoint in a process of its own, and add its score to `probe/results.jsonl`.

    It ends when the run is told to stop, whose own save waits for it.
    """
    if signals.received:
        return
    step, probe_dir = read_step(checkpoint), checkpoint.parent / "probe"
    try:
        export_checkpoint(checkpoint, probe_dir / "export")
    except Exception as error:  # such as a full disk
        logger.warning("the probe of step %d failed, training goes on: %s", step, error)
        return
    options = {
        "model": main_half(probe_dir / "export"),
        "task": arguments.probe_task,
        "data_dir": arguments.probe_data_dir,
        "max_train": arguments.probe_examples,
        "max_eval": arguments.probe_examples // 2,
        "num_epochs": 1,
        "seeds": 0,
        "step": step,
        "output_dir": probe_dir,
    }
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    command = [sys.executable, str(Path(__file__).with_name("finetune.py")), *words]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(LAUNCHER)}
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)
    while True:
        try:
            output, errors = process.communicate(timeout=1)
            break
        except subprocess.TimeoutExpired:
            if signals.received:
                process.kill()
    if process.returncode != 0:
        reason = "the run was told to stop" if signals.received else f"training goes on: {errors.strip()[-500:]}"
        logger.warning("the probe of step %d failed, %s", step, reason)
    for line in output.splitlines():
        if "seed 0: " in line:
            print(f"probe of step {step}: {line.split('seed 0: ')[1]}", flush=True)


def finish(trainer: KcElectraTrainer, run_dir: str) -> None:
    """Export the last checkpoint, write the report, once, and say how to load the result."""
    checkpoint = find_last_checkpoint(run_dir)
    history = read_history(checkpoint)
    page = Path(run_dir, REPORT_PAGE)
    if not Path(run_dir, "export").exists():
        export_checkpoint(checkpoint, Path(run_dir, "export"))
    if not page.exists():
        warmup_steps = trainer.generator_warmup.num_steps + trainer.args.get_warmup_steps(trainer.args.max_steps)
        alarms = check_health(history, warmup_steps=warmup_steps)
        write_report(run_dir, history, facts=describe_run(trainer), alarms=alarms)
    for check in check_learning(history):
        verdict = "yes" if check["holds"] else "not yet"
        print(f"{check['claim']}: {check['value']} (baseline {check['baseline']}): {verdict}")
    print(f"report: {page}\nload the result with\n{loading_snippet(run_dir)}")
    if trainer.pusher is not None:
        print(f"pushed: {trainer.pusher.push(checkpoint).commit_url}")


if __name__ == "__main__":
    run_recipe(main)
