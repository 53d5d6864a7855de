"""Launch inside a placement group that a task already runs in: the ranks take its bundles and leave it as it was."""

from __future__ import annotations

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raylaunch import Engine, LaunchConfig


@ray.remote(num_cpus=1)
def answer(prompts: list[str]) -> list[str]:
    """Runs in a bundle of the group, finds the group itself, and launches there instead of asking for another."""
    inherited = ray.util.get_current_placement_group()
    with Engine(LaunchConfig.default(), placement_group=inherited) as engine:
        print(engine.report.table())
        return [completion.text for completion in engine.generate(prompts, max_new_tokens=8)]


def main() -> None:
    ray.init(num_cpus=3, include_dashboard=False)
    # One CPU for the task and one for each rank. Bundle 0 holds the task and, as ranks on CPUs claim none, rank 0.
    group: PlacementGroup = placement_group([{"CPU": 2}, {"CPU": 1}], strategy="STRICT_PACK")
    inside = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
    prompts = ["12+30=", "7+8=", "99+99="]
    print(ray.get(answer.options(scheduling_strategy=inside).remote(prompts)))
    print("the group is still there:", group.wait(1))
    remove_placement_group(group)
    ray.shutdown()


if __name__ == "__main__":
    main()
