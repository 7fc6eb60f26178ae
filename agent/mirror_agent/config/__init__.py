"""Floor 1: TOML into values, or every problem with file, key, reason and hint.  Pure.

The values of definitions and settings are untrusted text: what comes out of here holds whitelisted characters only.
"""

from mirror_agent.config.definition import parse_definition, upstream_of
from mirror_agent.config.selection import Reading, select
from mirror_agent.config.settings import parse_settings

__all__ = ["Reading", "parse_definition", "parse_settings", "select", "upstream_of"]
