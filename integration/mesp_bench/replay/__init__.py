"""Replay: a trace's invocations, sent to a live platform at the times at which they were recorded.

`schedule` says what is called when, `functions` how each function is called (the map file), `openwhisk` and `http` do it
and read the answer, and `driver` keeps the times: open loop, so a slow platform is not given a rest. `summary` counts
in the simulator's terms, `report` lays the result down, alone or beside others. `history` tells a predictor what came
before. Times inside a replay are seconds or milliseconds from the instant at which its first counted minute begins.
"""
