"""The conformance kit: what every mixer, seeder and teacher has to keep, as test classes to inherit from.

Import it in a test file; it is no pytest plug-in and does nothing by itself. Needs pytest (``linearize[test]``).
"""

from __future__ import annotations

import pkgutil

import pytest

pytest.register_assert_rewrite(*(f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__)))

from linearize.testing.kernels import check_kernel  # noqa: E402
from linearize.testing.mixers import MixerConformance  # noqa: E402
from linearize.testing.seeders import SeederConformance  # noqa: E402
from linearize.testing.teacher import TeacherConformance  # noqa: E402

__all__ = ["MixerConformance", "SeederConformance", "TeacherConformance", "check_kernel"]
