"""For all tests: no example of hypothesis fails because the machine was busy."""

from __future__ import annotations

import hypothesis

hypothesis.settings.register_profile("mesp", deadline=None)
hypothesis.settings.load_profile("mesp")
