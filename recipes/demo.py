"""Try a model in the browser: paste a comment, see what cleaning, tokenizer, discriminator and generator make of it.

    python recipes/demo.py --model out/smoke/export
    python recipes/demo.py --model OWNER/NAME@REVISION --classifier OWNER/OTHER --space_dir out/space

The first serves a page at http://127.0.0.1:7860, Korean there and English at /en. The second writes what a Space of
the Hub needs to show the same page.
"""

from dataclasses import dataclass, field

from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from kcelectra.arguments import parse_args, run_recipe
from kcelectra.errors import InputError
from kcelectra.release.demo_model import load_model
from kcelectra.release.demo_page import build_page, import_gradio, launch_page
from kcelectra.release.demo_space import write_space


@dataclass
class DemoArguments:
    """What is tried, and where."""

    model: str | None = field(
        default=None, metadata={"help": "Directory with both halves, or OWNER/NAME@REVISION of the Hub."}
    )
    classifier: list[str] = field(
        default_factory=list, metadata={"help": "Fine-tuned models of one text, in the same notation."}
    )
    port: int | None = field(default=None, metadata={"help": "The first free one from 7860 if not given."})
    share: str = field(default="never", metadata={"help": "never: comments stay on this machine."})
    space_dir: str | None = field(default=None, metadata={"help": "Write a Space here, and serve nothing."})

    def __post_init__(self) -> None:
        if self.model is None:
            raise InputError("give --model, such as --model out/smoke/export")
        if self.share != "never":
            raise InputError(
                f"--share {self.share}: a tunnel would lead comments over another host; to show the page to others, "
                "make a Space of it with --space_dir"
            )


def main() -> None:
    """Serve the page, or write the Space."""
    (arguments,) = parse_args(DemoArguments)
    set_verbosity_error()
    disable_progress_bar()
    if arguments.space_dir is not None:
        files = write_space(arguments.space_dir, arguments.model, arguments.classifier)
        print("\n".join(files))
        print(f"push it with: hf upload OWNER/NAME {arguments.space_dir} --repo-type space")
        return
    import_gradio()  # before a model is loaded for nothing
    launch_page(build_page(load_model(arguments.model, arguments.classifier)), port=arguments.port)


if __name__ == "__main__":
    run_recipe(main)
