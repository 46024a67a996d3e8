"""`python -m subbyte.rtl`: the commands of `subbyte rtl`."""

from .cli import app

app(prog_name="python -m subbyte.rtl")
