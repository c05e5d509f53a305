"""Write the report of fine-tuning: scores of models x tasks, what lies behind them, and the published table beside.

    python recipes/report.py --results out/finetune/results.jsonl

Without --results it is the published table alone, and whether its numbers hold.
"""

from dataclasses import dataclass, field

from kcelectra.arguments import parse_args, run_recipe
from kcelectra.release.score_report import describe_published, write_score_report
from kcelectra.release.scores import to_markdown


@dataclass
class ReportArguments:
    """What is reported, and where."""

    results: str | None = field(default=None, metadata={"help": "results.jsonl that fine-tuning appended to."})
    output_dir: str = field(default="out/report", metadata={"help": "Gets the page, the tables and the pictures."})
    baseline: str | None = field(
        default=None, metadata={"help": "Model that the others are compared with, as the table calls it; the first."}
    )
    sweep_file: str | None = field(
        default=None, metadata={"help": "CSV of every saved step, to check the published table against anew."}
    )


def main() -> None:
    """Write the report, print its tables, and say where it is."""
    (arguments,) = parse_args(ReportArguments)
    report = write_score_report(
        arguments.output_dir, arguments.results, baseline=arguments.baseline, sweep_file=arguments.sweep_file
    )
    for table in report.tables:
        print(to_markdown(table))
    print(f"## Published scores\n\n{describe_published(report.published)}\n")
    print(f"report: {report.page}")


if __name__ == "__main__":
    run_recipe(main)
