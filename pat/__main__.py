"""`python -m pat`, for an interpreter whose scripts are not on PATH; launchers start it as a module, too."""

from pat.cli import main

if __name__ == "__main__":
    main()
