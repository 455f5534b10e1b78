"""MESP: a predictive prewarm scheduler for serverless platforms.

This base package is what every part shares: the domain types (`types`), the wire (`v1`, `wire`), the
predictor client (`client`) and the `mesp` command (`cli`). It needs neither torch nor any platform client.
"""

__version__ = "0.1.0"
