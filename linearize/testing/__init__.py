"""The conformance kit: what every teacher has to keep, as test classes to inherit from.

Import it in a test file; it is no pytest plug-in and does nothing by itself. Needs pytest (``linearize[test]``).
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("linearize.testing.teacher")

from linearize.testing.teacher import TeacherConformance  # noqa: E402

__all__ = ["TeacherConformance"]
