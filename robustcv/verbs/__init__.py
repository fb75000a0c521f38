"""One file a verb: each wires data, models, methods and evaluation into one run."""
