"""`python -m agent` is `edgewise`."""

from agent.cli import main

if __name__ == "__main__":
    main()
