"""The energy study of the parallelisms: which cases there are, how each is simulated or run, what is verified."""
