"""``python -m greentrain.cli`` is the ``greentrain`` command."""

from greentrain.cli import main

if __name__ == "__main__":
    main()
