"""`python -m kora` is the same as `kora`."""

from kora.cli import main

if __name__ == "__main__":
    main()
