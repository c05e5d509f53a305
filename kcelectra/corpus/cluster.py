"""The steps of a corpus for datatrove's executors: local, Ray and Slurm."""

from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from kcelectra.corpus.shards import Step, count_tasks


class CorpusStep(PipelineStep):
    """Do those tasks of a step that fall to a rank.

    It works on files: datatrove's documents pass by untouched, as they cost ten times as much as the work.

    Args:
        step: one of `kcelectra.corpus.shards.STEPS`, in their order; each needs the one before it to be done.
        work_dir: what `plan_corpus` returned, on a disk that every rank sees.
    """

    type = "kcelectra"

    def __init__(self, step: Step, work_dir: str) -> None:
        self.name = step.__name__
        super().__init__()
        self.step = step
        self.work_dir = work_dir

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Do tasks `rank`, `rank + world_size`, ... ; those done before are left as they are."""
        for task in range(rank, count_tasks(self.step, self.work_dir), world_size):
            with self.track_time():
                result = self.step(self.work_dir, task)
            self.stat_update("comments", value=result["num_rows"], unit="task")
        return data
