"""`python -m reco_tune` is `reco-tune`."""

from reco_tune.cli import main

main()
