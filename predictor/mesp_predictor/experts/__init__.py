"""The experts: one module each, all with one face, ``predict(context, horizon, levels)``."""
