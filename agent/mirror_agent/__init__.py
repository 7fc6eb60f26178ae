"""mirror-agent: pull-through registry mirrors as an appliance of systemd and podman."""

__version__ = "0.1.0"
