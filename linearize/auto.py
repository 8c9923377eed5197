"""Import this once, and transformers' Auto classes load saved students like any other model.

import linearize.auto
model = AutoModelForImageTextToText.from_pretrained("runs/mmmamba-hovle/student")
"""

from __future__ import annotations

from linearize.student.classes import register_students

register_students()
