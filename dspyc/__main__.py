"""`python -m dspyc` is `dspyc`."""

from .cli import app

if __name__ == "__main__":
    app(prog_name="dspyc")
