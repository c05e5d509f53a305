"""What the reports share: pages of one file that open offline, with their pictures inside."""

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
  body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
  table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .2rem .8rem; text-align: left }
  td.number, th.number { text-align: right; font-variant-numeric: tabular-nums } td.number { white-space: pre }
  tr:nth-child(even) { background: #f5f5f5 }
  .plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(26rem, 1fr)); gap: 1rem }
  .wide { overflow-x: auto } .text { overflow-wrap: break-word; unicode-bidi: isolate }
  .wide td.text:last-child { min-width: 14rem }
  .note, figcaption { color: #555; font-size: 13px; margin: .3rem 0 } figure { margin: 0 }
  img { width: 100%; border: 1px solid #ddd } figure img { width: auto; max-width: 100% }
  pre { background: #f5f5f5; padding: 1rem; overflow-x: auto }
  .pass { color: #176f2c } .fail { color: #b3261e }
</style>
</head>
<body>
<h1>{{ title }}</h1>
BODY</body>
</html>
"""


def render_page(body: str, *, title: str, **facts: Any) -> str:
    """Return a page in HTML; whatever is in the facts is text and never markup.

    Args:
        body: a Jinja template, put below the title.
        title: of the page.
        **facts: what the template names.
    """
    return Environment(autoescape=True).from_string(_PAGE.replace("BODY", body)).render(title=title, **facts)


def embed(picture: Path) -> str:
    """Return a PNG as an address that holds all of it."""
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
