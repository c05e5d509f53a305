"""Train in a process of its own, as torch_xla opens its devices once, and write down what each step cost.

`train.py SOURCE RUN_DIR OPTIONS`: a directory of packed rows, that of the run, and JSON: `arguments` of training,
fields of the model's `config`, and whether to `pretend_tpu`, where accelerate executes a graph before each step.
"""

import json
import sys
from pathlib import Path

import torch
from accelerate import state
from kill import make_trainer

from kcelectra import KcElectraTrainer
from kcelectra.pretraining import xla
from kcelectra.pretraining.packed import PackedRows

if xla.IS_THERE:
    from torch_xla.core.xla_model import wait_device_ops
    from torch_xla.debug import metrics

#: Of one device and of several.
COUNTED = ("UncachedCompile", "ExecuteComputation", "ExecuteReplicated")


class CountingTrainer(KcElectraTrainer):
    """Adds to `steps` after each step: the graphs compiled and executed so far, and operators that left the graph."""

    steps: list[dict]

    def end_step(self, control):
        super().end_step(control)
        if xla.IS_THERE:
            wait_device_ops()  # executions are counted when they begin
            names = [name for name in metrics.counter_names() if name.startswith("aten::")]
            counts = {name: metrics.counter_value(name) or 0 for name in [*COUNTED, *names]}
            self.steps.append({**counts, "step": self.state.global_step, "logs": control.should_log})


def main(source: str, run_dir: str, options: str) -> None:
    options = json.loads(options)
    if options.get("pretend_tpu"):
        state.is_torch_xla_available = lambda *args, **kwargs: True
    CountingTrainer.steps = []
    trainer = make_trainer(
        source,
        PackedRows(source, seed=0).load_tokenizer(),
        Path(run_dir),
        trainer_class=CountingTrainer,
        config=options.get("config"),
        **options["arguments"],
    )
    trainer.train(resume_from_checkpoint=True)
    weights = [parameter.detach().cpu() for parameter in trainer.model.parameters()]
    result = {
        "device": str(trainer.args.device),
        "num_devices": xla.num_devices(),
        "rows": trainer.args.train_batch_size,
        "steps": trainer.steps,
        "history": [entry for entry in trainer.state.log_history if "loss" in entry],
        "dtypes": sorted({str(weight.dtype) for weight in weights}),
        "is_rounded": any(torch.equal(weight, weight.bfloat16().float()) for weight in weights if weight.ndim == 2),
    }
    Path(run_dir, "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
