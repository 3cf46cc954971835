"""`python -m pat.config.reference`: write the files below this checkout."""

from pat.config.reference import write

if __name__ == "__main__":
    write()
