"""``python -m greentrain.cli`` is the ``greentrain`` command."""

from greentrain.cli import run

if __name__ == "__main__":
    run()
