"""`python -m waitingroom`."""

from waitingroom.cli import main

if __name__ == "__main__":
    main()
