"""No time limits in tests of properties: a busy machine is not a defect.  Speed is measured in bench/.

The same examples each time: what chance finds is no verdict on the change that is tested.  To look for more of it:
`pytest --hypothesis-profile=explore`.
"""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "patient", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", settings.get_profile("patient"), derandomize=False, max_examples=1000)
settings.load_profile("patient")
