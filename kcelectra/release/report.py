"""The report of a pretraining run: one HTML page that opens offline, and its curves as PNG."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kcelectra.errors import InputError
from kcelectra.hub import main_half
from kcelectra.manifest import write_atomically
from kcelectra.release.page import embed, render_page
from kcelectra.release.plots import EVAL_LOSS, draw_plots

REPORT_PAGE = "report/index.html"

_BODY = """<h2>Is it learning?</h2>
<table>
<tr><th>claim</th><th>reached</th><th>baseline</th><th></th></tr>
{% for check in checks -%}
<tr><td>{{ check.claim }}</td><td class="number">{{ check.value }}</td><td class="number">{{ check.baseline }}</td>
<td class="{{ 'pass' if check.holds else 'fail' }}">{{ 'yes' if check.holds else 'not yet' }}</td></tr>
{% endfor -%}
</table>
<h2>Health</h2>
{% if alarms -%}
<table>
<tr><th>steps</th><th>alarm</th><th>what it means</th></tr>
{% for step, name, meaning, until in alarms -%}
<tr><td class="number">{{ step }} to {{ until or "the end" }}</td><td class="fail">{{ name }}</td>
<td>{{ meaning }}</td></tr>
{% endfor -%}
</table>
<p class="note">Dotted lines mark where an alarm begins.</p>
{% else -%}
<p>No alarms.</p>
{% endif -%}
<div class="plots">
{% for plot in plots -%}
<img alt="{{ plot.name }}" src="{{ plot.data }}">
{% endfor -%}
</div>
{% for name, rows in tables -%}
<h2>{{ name }}</h2>
<table>
{% for key, value in rows.items() -%}
<tr><td>{{ key }}</td><td class="number">{{ value }}</td></tr>
{% endfor -%}
</table>
{% endfor -%}
<h2>Load it</h2>
<pre>{{ snippet }}</pre>
"""


def write_report(
    run_dir: str | Path,
    history: list[dict[str, Any]],
    *,
    facts: dict[str, dict[str, Any]],
    alarms: Sequence[tuple[int, str, str, int | None]],
) -> Path:
    """Write `report/index.html`, `report/history.json` and the curves of a run.

    Args:
        run_dir: output directory of the run.
        history: `log_history` of the Trainer's state.
        facts: tables to show, by title.
        alarms: what `check_health` found: step, name, meaning, and the step when it was over or None.

    Returns:
        The path of the page, which needs no other file and no network.

    Raises:
        InputError: the run logged nothing.
    """
    entries = _training_entries(history)
    output_dir = Path(run_dir, REPORT_PAGE).parent
    output_dir.mkdir(parents=True, exist_ok=True)
    logged = [entry for entry in history if "generator_loss" in entry or EVAL_LOSS in entry]
    files = draw_plots(logged, output_dir, marked_steps=[step for step, *_ in alarms])
    plots = [{"name": path.stem, "data": embed(path)} for path in files]
    write_atomically(output_dir / "history.json", json.dumps(_without_nan(logged), indent=1) + "\n")
    page = render_page(
        _BODY,
        title=f"Pretraining report: {Path(run_dir).name}",
        checks=check_learning(entries),
        alarms=alarms,
        plots=plots,
        tables=[
            ("Last logged interval", _format(entries[-1])),
            *((name, _format(rows)) for name, rows in facts.items()),
        ],
        snippet=loading_snippet(run_dir),
    )
    path = Path(run_dir, REPORT_PAGE)
    write_atomically(path, page)
    return path


def check_learning(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compare the last logged interval with what a model that has learnt nothing would reach.

    A discriminator that did not run is left out.
    """
    entry = _training_entries(history)[-1]
    generator, unigram = entry["generator_loss"], entry["unigram_entropy"]
    checks = [_check("generator loss below the unigram entropy", generator, f"{unigram:.4f}", generator < unigram)]
    if "discriminator_loss" not in entry:
        return checks
    discriminator, chance = entry["discriminator_loss"], entry["fake_rate_entropy"]
    auc = entry["discriminator_auc"]
    return [
        *checks,
        _check(
            "discriminator loss below the entropy of the fake rate",
            discriminator,
            f"{chance:.4f}",
            discriminator < chance,
        ),
        _check("discriminator AUC above chance", auc, "0.5", auc > 0.5),
    ]


def loading_snippet(run_dir: str | Path) -> str:
    """Return the two lines of Python that load the result."""
    half = main_half(Path(run_dir, "export")).as_posix()
    return f'from transformers import AutoModel\nmodel = AutoModel.from_pretrained("{half}")'


def _training_entries(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    entries = [entry for entry in history if "generator_loss" in entry]
    if not entries:
        raise InputError("the run logged nothing; give --logging_strategy steps")
    return entries


def _without_nan(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Replace NaN, which JSON does not know, by None: a precision where nothing was flagged."""
    return [{key: None if value != value else value for key, value in entry.items()} for entry in entries]


def _check(claim: str, value: float, baseline: str, holds: bool) -> dict[str, Any]:
    return {"claim": claim, "value": f"{value:.4f}", "baseline": baseline, "holds": holds}


def _format(rows: dict[str, Any]) -> dict[str, str]:
    return {key: _format_value(value) for key, value in rows.items()}


def _format_value(value: Any) -> str:
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
