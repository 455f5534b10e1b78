"""OpenWhisk as shipped: a fixed idle timeout, and stem cells that are never anyone's.

An invoker unloads a container that was idle for ten minutes (`container-proxy.timeouts.idle-container`), and holds
two stem cells of 256 MB of the most common runtime, refilled as soon as one is taken (`runtimes.json`). A stem cell
shortens a cold start but does not avoid it: the function's code is still initialised. Its memory is always idle.
"""

from __future__ import annotations

from typing import ClassVar

from mesp_bench.policies.fixed import Fixed


class OpenWhisk(Fixed):
    """Fixed keep-alive of `knob` idle minutes (10 as shipped), with the stem cells charged as waste throughout."""

    name: ClassVar[str] = "openwhisk"
    knob_unit: ClassVar[str] = "idle minutes"
    constant_idle_mb: ClassVar[float] = 2 * 256.0
