"""Submit a launch as a job, follow its log, and see how it ended.

Needs a cluster whose dashboard answers, and no raylaunch on it: the job brings this folder along. Run it from the
repository's root:

    ray start --head
    RAY_API_SERVER_ADDRESS=http://127.0.0.1:8265 python examples/submit_job.py

``ray job stop`` sends SIGTERM and kills after 3 seconds; a server that may finish its answers needs the time.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import sys

from ray.job_submission import JobSubmissionClient

COMMAND = "python -m raylaunch generate configs/tiny-cpu.yaml --prompt 12+30= --prompt 99+99="


async def follow(client: JobSubmissionClient, job: str) -> None:
    """Prints the job's log as it comes, to its end."""
    async for lines in client.tail_job_logs(job):
        print(lines, end="")


def main() -> int:
    """The exit code of ``raylaunch``: 0 done, 1 the launch failed, 2 wrong configuration, 3 a request failed."""
    client = JobSubmissionClient(os.environ.get("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265"))
    job = client.submit_job(
        entrypoint=sys.argv[1] if len(sys.argv) == 2 else shlex.join(sys.argv[1:]) or COMMAND,
        runtime_env={
            "working_dir": ".",
            "excludes": ["tests", "docs"],
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "40"},  # for `raylaunch serve`: serve.drain and a little more
        },
    )
    print(f"submitted {job}")
    asyncio.run(follow(client, job))
    info = client.get_job_info(job)
    print(f"{info.status}, exit code {info.driver_exit_code}")
    if info.driver_exit_code is None:  # stopped, or it could not be started
        return 1
    return info.driver_exit_code


if __name__ == "__main__":
    sys.exit(main())
