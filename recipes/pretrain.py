"""Pretrain a generator and a discriminator on raw comments, and export both.

The whole pipeline on the embedded sample, in two minutes on a CPU:

    accelerate launch recipes/pretrain.py

Your own comments, a published architecture; the same command again continues an interrupted run:

    accelerate launch recipes/pretrain.py recipes/small/pretrain.yaml --dataset "comments/*.parquet"

`--push_to_hub true --hub_model_id OWNER/NAME` pushes each checkpoint as it is saved, to a private repository;
`--resume_from_checkpoint DIRECTORY` begins with one that was pushed (`--hub_strategy checkpoint`, `last-checkpoint/`).
"""

import logging
from pathlib import Path

from transformers import set_seed
from transformers.utils.logging import disable_progress_bar

from kcelectra.arguments import given_settings, parse_args, run_recipe
from kcelectra.errors import InputError
from kcelectra.pretraining.checkpoints import STATE_FILE, find_last_checkpoint, read_history, read_step
from kcelectra.pretraining.export import export_checkpoint
from kcelectra.pretraining.run import (
    DataArguments,
    ModelArguments,
    build_trainer,
    claim_run_dir,
    describe_run,
    open_comments,
    prepare_cpu,
    prepare_tokenizer,
)
from kcelectra.pretraining.trainer import KcElectraTrainer, PretrainingArguments
from kcelectra.release.report import REPORT_PAGE, check_learning, loading_snippet, write_report

SMOKE_PRESET = Path(__file__).parent / "smoke" / "pretrain.yaml"


def main() -> None:
    """Run the pipeline, or continue where it was interrupted."""
    logging.basicConfig(format="%(levelname)s %(message)s")
    arguments = parse_args(ModelArguments, DataArguments, PretrainingArguments, default_preset=SMOKE_PRESET)
    model_args, data_args, training_args = arguments
    if training_args.disable_tqdm:
        disable_progress_bar()
    prepare_cpu()
    run_dir = training_args.output_dir
    with training_args.main_process_first():
        claim_run_dir(run_dir, given_settings(*arguments, default_preset=SMOKE_PRESET))
        reader = open_comments(data_args, run_dir)
        tokenizer = prepare_tokenizer(data_args, reader, run_dir)
    set_seed(training_args.seed)
    trainer = build_trainer(model_args, data_args, training_args, reader=reader, tokenizer=tokenizer)
    checkpoint = find_last_checkpoint(run_dir)
    if checkpoint is not None and read_step(checkpoint) >= training_args.max_steps:
        print(f"{run_dir} has trained its {training_args.max_steps} steps; delete it to train anew")
    else:
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


def finish(trainer: KcElectraTrainer, run_dir: str) -> None:
    """Export the last checkpoint, write the report, once, and say how to load the result."""
    checkpoint = find_last_checkpoint(run_dir)
    history = read_history(checkpoint)
    page = Path(run_dir, REPORT_PAGE)
    if not page.exists():
        export_checkpoint(checkpoint, Path(run_dir, "export"))
        write_report(run_dir, history, facts=describe_run(trainer))
    for check in check_learning(history):
        verdict = "yes" if check["holds"] else "not yet"
        print(f"{check['claim']}: {check['value']} (baseline {check['baseline']}): {verdict}")
    print(f"report: {page}\nload the result with\n{loading_snippet(run_dir)}")
    if trainer.pusher is not None:
        print(f"pushed: {trainer.pusher.push(checkpoint).commit_url}")


if __name__ == "__main__":
    run_recipe(main)
