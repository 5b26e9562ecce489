"""`python -m kora` is the same as `kora`."""

from kora.cli import main
from kora.runs.processes import tie_to_parent

if __name__ == "__main__":
    tie_to_parent()
    main()
