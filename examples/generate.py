"""Launch a model, look at what the launch did, and answer prompts.

python examples/generate.py                # the model that ships, on two CPU ranks
python examples/generate.py my-model.yaml
"""

from __future__ import annotations

import sys

from raylaunch import Engine, LaunchConfig, LaunchError


def main() -> None:
    config = LaunchConfig.from_yaml(sys.argv[1]) if len(sys.argv) > 1 else LaunchConfig.default()
    with Engine(config) as engine:
        print(engine.report.table())
        prompts = ["12+30=", "7+8=", "99+99="]
        for prompt, answer in zip(prompts, engine.generate(prompts, max_new_tokens=8), strict=True):
            print(f"{prompt}{answer.text}   ({len(answer.token_ids)} tokens, {answer.finish_reason})")
        print(engine.health())


if __name__ == "__main__":
    try:
        main()
    except LaunchError as error:  # says which rank failed, where and why; nothing is left running
        sys.exit(str(error))
