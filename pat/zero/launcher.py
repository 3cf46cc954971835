"""DeepSpeed's launcher on one machine: `python -m deepspeed.launcher.launch`, started in half the time."""

import os

from pat.zero.import_deepspeed import import_deepspeed

LAUNCHER_PID = "PAT_LAUNCHER_PID"  # in the ranks' environment

if __name__ == "__main__":
    os.environ[LAUNCHER_PID] = str(os.getpid())
    import_deepspeed()
    from deepspeed.launcher.launch import main  # pyright: ignore[reportMissingTypeStubs]

    main()
