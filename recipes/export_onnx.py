"""Write a model as ONNX, in float32 and on request in int8.

    python recipes/export_onnx.py --model out/smoke/export/discriminator --output_dir out/onnx --quantize true

Needs `pip install "kcelectra[onnx]"`.
"""

import logging
from dataclasses import dataclass, field

from kcelectra.arguments import parse_args, run_recipe
from kcelectra.errors import InputError
from kcelectra.manifest import read_manifest
from kcelectra.release.onnx import export_onnx


@dataclass
class OnnxArguments:
    """What is written, and where."""

    model: str | None = field(default=None, metadata={"help": "Directory of an exported or fine-tuned model."})
    output_dir: str = field(default="out/onnx", metadata={"help": "Gets the models, config and tokenizer; new."})
    quantize: bool = field(default=False, metadata={"help": "Write model_int8.onnx too."})
    opset: int = field(default=20, metadata={"help": "Version of ONNX's operators."})

    def __post_init__(self) -> None:
        if self.model is None:
            raise InputError("give --model, such as --model out/smoke/export/discriminator")


def main() -> None:
    """Write the models, and print how large they are and how far from PyTorch."""
    (arguments,) = parse_args(OnnxArguments)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of torchvision's operators
    path = export_onnx(str(arguments.model), arguments.output_dir, quantize=arguments.quantize, opset=arguments.opset)
    manifest = read_manifest(path.parent) or {}
    for name, difference in manifest["max_difference"].items():
        size = manifest["files"][name]["size"]
        print(f"{path.parent / name}: {size / 1e6:,.1f} MB, at most {difference:.1e} from PyTorch")


if __name__ == "__main__":
    run_recipe(main)
