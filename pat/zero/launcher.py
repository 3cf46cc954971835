"""DeepSpeed's launcher on one machine: `python -m deepspeed.launcher.launch`, started in half the time."""

from pat.zero.import_deepspeed import import_deepspeed

if __name__ == "__main__":
    import_deepspeed()
    from deepspeed.launcher.launch import main  # pyright: ignore[reportMissingTypeStubs]

    main()
