"""A Space of the Hub that shows the page to try a model."""

import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import distribution, version
from pathlib import Path

from huggingface_hub import SpaceCardData

from kcelectra.errors import InputError
from kcelectra.hub import check_repo_id, split_revision
from kcelectra.manifest import write_atomically

GRADIO = "6.31.0"  # that the page was tested with; a test compares constraints.txt
#: What the page imports, with what these need; a test compares.
PACKAGES = ("jinja2", "torch", "transformers")

_APP = '''"""Try {name}."""

from kcelectra.release.demo_model import load_model
from kcelectra.release.demo_page import build_page, launch_page

page = build_page(load_model({source!r}, {classifiers!r}))

if __name__ == "__main__":
    launch_page(page)
'''
_README = """---
{header}
---

# Try {name}

Paste a Korean comment: see how it is cleaned and cut into tokens, which of them the discriminator takes for replaced,
and what the generator would put in their place. English is at `/en`.

한국어 댓글을 붙여 넣으면 정제와 토큰, 판별기가 바뀌었다고 보는 토큰, 생성기가 채우는 토큰을 보여 줍니다.

Made with `recipes/demo.py --space_dir`; `kcelectra/` is a copy of the package that made it.
"""


def write_space(space_dir: str | Path, model: str, classifiers: Sequence[str] = ()) -> list[str]:
    """Write `app.py`, `requirements.txt`, `README.md`, and a copy of this package, which `app.py` imports.

    No token is written: a Space reads a private model with the secret `HF_TOKEN` of its settings.

    Args:
        space_dir: made if it does not exist; empty if it does.
        model: OWNER/NAME or OWNER/NAME@REVISION on the Hub.
        classifiers: fine-tuned models in the same notation.

    Returns:
        The files, below `space_dir`.

    Raises:
        InputError: a model is not on the Hub, or `space_dir` is not empty.
    """
    space_dir = Path(space_dir).resolve()
    names = [_require_id(source) for source in (model, *classifiers)]
    if space_dir.exists() and any(space_dir.iterdir()):
        raise InputError(f"{space_dir} is not empty; give another --space_dir")
    if space_dir == Path.cwd():  # which is put in place as a whole
        raise InputError(f"{space_dir} is where you are; give a new --space_dir, such as out/space")
    # without the build of torch, which other machines may not have
    versions = {"gradio": GRADIO} | {package: version(package).partition("+")[0] for package in PACKAGES}
    header = SpaceCardData(
        title=f"Try {names[0].rpartition('/')[2]}",
        emoji="💬",
        colorFrom="yellow",
        colorTo="red",
        sdk="gradio",
        sdk_version=GRADIO,
        python_version=f"{sys.version_info.major}.{sys.version_info.minor}",
        app_file="app.py",
        models=names,
        license="mit",
    )
    package, staging = Path(__file__).parents[1], space_dir.with_name(f".{space_dir.name}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    shutil.copytree(package, staging / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    texts = {
        "app.py": _APP.format(name=names[0], source=model, classifiers=list(classifiers)),
        "requirements.txt": "".join(f"{name}=={number}\n" for name, number in versions.items()),
        "README.md": _README.format(header=header.to_yaml(), name=names[0]),
        f"{package.name}/LICENSE": distribution("kcelectra").read_text("licenses/LICENSE") or "",
    }
    for name, text in texts.items():
        write_atomically(staging / name, text)
    staging.rename(space_dir)
    return sorted(path.relative_to(space_dir).as_posix() for path in space_dir.rglob("*") if path.is_file())


def _require_id(source: str) -> str:
    """Return OWNER/NAME of a model on the Hub."""
    name, _ = split_revision(source)
    if Path(source).exists():
        raise InputError(f"{source} is a directory here, and a Space loads from the Hub; give OWNER/NAME@REVISION")
    check_repo_id(name)
    return name
