"""`python -m ringrl.cli` is `ringrl`."""

from ringrl.cli import main

if __name__ == "__main__":
    main()
