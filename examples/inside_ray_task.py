"""Keep an engine inside a Ray actor: other tasks of the job send it prompts, and its ranks are actors beside it."""

from __future__ import annotations

import ray

from raylaunch import Engine, LaunchConfig


@ray.remote(num_cpus=0)
class Adder:
    """Holds the engine. It waits for requests only: the ranks do the work, in a placement group of their own."""

    def start(self) -> str:
        self.engine = Engine(LaunchConfig.default()).start()
        return self.engine.report.table()

    def add(self, left: int, right: int) -> int:
        return int(self.engine.generate(f"{left}+{right}=", max_new_tokens=8).text)

    def stop(self) -> None:
        self.engine.shutdown()


def main() -> None:
    ray.init(num_cpus=2, include_dashboard=False)
    adder = Adder.remote()
    print(ray.get(adder.start.remote()))
    print(ray.get([adder.add.remote(number, 30) for number in (1, 12, 69)]))
    ray.get(adder.stop.remote())
    ray.shutdown()


if __name__ == "__main__":
    main()
