"""Ask a model that looks at images, through SGLang, on two GPUs.

python examples/sglang_vision.py photo.jpg "What is this?"
python examples/sglang_vision.py photo.jpg "What is this?" my-model.yaml
"""

from __future__ import annotations

import sys

from raylaunch import Engine, LaunchConfig, LaunchError, RequestError

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"  # where Qwen2.5-VL looks at the image


def main(image: str, question: str, file: str = "configs/qwen2.5-vl-7b-tp2.yaml") -> None:
    with Engine(LaunchConfig.from_yaml(file)) as engine:
        prompt = f"<|im_start|>user\n{IMAGE}{question}<|im_end|>\n<|im_start|>assistant\n"
        answer = engine.generate(prompt, images=[image], max_new_tokens=128)  # or a URL, a data URI, bytes
        print(answer.text)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except (LaunchError, RequestError) as error:
        sys.exit(str(error))
