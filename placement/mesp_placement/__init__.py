"""The decision: how many containers each function should have warm, and on which nodes.

`sizing` turns a forecast and the price of a cold start into a warm count; `planner` turns counts into prewarms
and releases on nodes (`filters`, `scores`), inside `guards`. Everything is a pure function of its inputs and
`now_ms`; `service` offers it over gRPC.
"""
