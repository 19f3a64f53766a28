"""`python -m posttrain` is the `posttrain` command, so that `accelerate launch -m posttrain` can start it."""

from posttrain.cli import main

raise SystemExit(main())
