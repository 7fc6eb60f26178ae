"""No time limits in tests of properties: a busy machine is not a defect.  Speed is measured in bench/."""

from hypothesis import settings

settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
