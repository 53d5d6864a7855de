"""Answer a column of a Ray Dataset: one launch, then batch after batch. Needs ``pip install 'raylaunch[data]'``."""

from __future__ import annotations

from typing import Any

import numpy as np
import ray
from ray.data import ActorPoolStrategy

from raylaunch import Engine, LaunchConfig


class Answer:
    """A worker of the dataset. Its ranks are actors beside it, and end with it."""

    def __init__(self) -> None:
        self.engine = Engine(LaunchConfig.default()).start()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        answers = self.engine.generate(batch["prompt"].tolist(), max_new_tokens=8)
        return {**batch, "answer": np.array([answer.text for answer in answers])}


def main() -> None:
    ray.init(num_cpus=4, include_dashboard=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    sums = [{"prompt": f"{a}+{b}=", "expected": str(a + b)} for a in range(0, 100, 5) for b in range(0, 100, 5)]
    answered = ray.data.from_items(sums).map_batches(
        Answer, compute=ActorPoolStrategy(size=1), batch_size=64, num_cpus=0
    )
    rows = answered.take_all()
    right = sum(row["answer"] == row["expected"] for row in rows)
    print(rows[:3])
    print(f"{right} of {len(rows)} are right")
    ray.shutdown()


if __name__ == "__main__":
    main()
