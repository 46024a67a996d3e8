"""`python -m subbyte.cli`, for where the script `subbyte` is not on the PATH."""

from subbyte.cli import app

app()
